//! Roads: a made-up but connected road network in a real place.
//!
//! Streets form a bent grid (residential), every fifth line of it is wider and faster (arterial),
//! and a ring around the city (motorway) hangs on the ends of the arterials by ramps. Positions
//! are metres east and north of the centre; [`Place`] turns them into degrees. Everything follows
//! from the seed and needs no external data.
//!
//! Connected by construction: a random spanning tree is drawn first and its streets always stay;
//! only others are left out. So every node can be reached from every other, and a route is never
//! refused. Price: the streets are not the place's real ones.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::f64::consts::{PI, TAU};

use crate::dice::Dice;

/// Where on Earth a network lies: its centre.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Place {
    /// Name for people.
    pub name: &'static str,
    /// Degrees north (WGS 84).
    pub latitude: f64,
    /// Degrees east (WGS 84).
    pub longitude: f64,
    /// Height of the centre above the sea, metres.
    pub altitude: f64,
}

impl Place {
    /// Where synthetic fleets drive unless told otherwise.
    pub const STUTTGART: Place = Place {
        name: "Stuttgart",
        latitude: 48.7758,
        longitude: 9.1829,
        altitude: 260.0,
    };

    /// Degrees (latitude, longitude) of a point `east` and `north` metres from the centre.
    /// Flat-earth with the ellipsoid's local scale: better than 0.1 % within 20 km.
    pub fn degrees(&self, east: f64, north: f64) -> (f64, f64) {
        let phi = self.latitude.to_radians();
        let per_latitude = 111_132.954 - 559.822 * (2.0 * phi).cos() + 1.175 * (4.0 * phi).cos();
        let per_longitude = 111_412.84 * phi.cos() - 93.5 * (3.0 * phi).cos();
        (
            self.latitude + north / per_latitude,
            self.longitude + east / per_longitude,
        )
    }
}

/// What kind of road an edge is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum RoadClass {
    /// 30 or 50 km/h, right before left.
    Residential,
    /// 50 to 70 km/h, traffic lights; the ramps too.
    Arterial,
    /// 100 or 120 km/h, no lights.
    Motorway,
}

impl RoadClass {
    /// How far before and after a corner a driver begins to cut it, metres. Gives the radius.
    fn corner_cut(self) -> f64 {
        match self {
            Self::Residential => 8.0,
            Self::Arterial => 15.0,
            Self::Motorway => 60.0,
        }
    }
}

/// Index of a node of a [`RoadNetwork`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NodeId(u32);

/// Index of a directed edge of a [`RoadNetwork`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct EdgeId(u32);

/// A traffic light: two phases, one for approaches that run rather east-west, one for the others.
#[derive(Debug, Clone, Copy)]
pub struct TrafficLight {
    cycle: f64,
    offset: f64,
}

impl TrafficLight {
    /// Whether traffic that arrives on a road of this bearing must stop at this time (seconds).
    /// Four seconds of every change are red for all.
    pub fn is_red(&self, time: f64, bearing: f64) -> bool {
        let phase = (time + self.offset).rem_euclid(self.cycle) / self.cycle;
        let clearance = 4.0 / self.cycle;
        let east_west = bearing.sin().abs() > bearing.cos().abs();
        let open = if east_west { 0.0..0.5 } else { 0.5..1.0 };
        !(open.contains(&phase) && open.contains(&(phase + clearance)))
    }
}

/// Where roads meet.
#[derive(Debug, Clone)]
pub struct Node {
    /// Metres east of the centre.
    pub east: f64,
    /// Metres north of the centre.
    pub north: f64,
    /// Metres above the sea.
    pub altitude: f64,
    /// The light that guards it, if any.
    pub light: Option<TrafficLight>,
}

/// One direction of a road: straight, from node to node.
#[derive(Debug, Clone)]
pub struct Edge {
    /// Where it begins.
    pub from: NodeId,
    /// Where it ends.
    pub to: NodeId,
    /// Metres.
    pub length: f64,
    /// Radians clockwise from north.
    pub bearing: f64,
    /// Kind of road.
    pub class: RoadClass,
    /// Speed limit, m/s.
    pub limit: f64,
    /// Rise over run; positive uphill.
    pub grade: f64,
}

/// A point on a road.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Position {
    /// The directed edge it is on.
    pub edge: EdgeId,
    /// Metres from the edge's beginning, within its length.
    pub offset: f64,
}

/// A connected road network. Immutable: all vehicles of a fleet share one.
#[derive(Debug)]
pub struct RoadNetwork {
    place: Place,
    nodes: Vec<Node>,
    edges: Vec<Edge>,
    outgoing: Vec<Vec<EdgeId>>,
}

/// Streets per side of the grid.
const GRID: usize = 24;
/// Metres between streets.
const SPACING: f64 = 380.0;
/// Nodes of the motorway ring.
const RING: usize = 32;

impl RoadNetwork {
    /// Builds the network that belongs to a seed around a place: about 9 km of streets each way
    /// inside a motorway ring of 14 km.
    pub fn generate(place: Place, seed: u64) -> Self {
        let mut dice = Dice::for_thing(seed, "roads");
        let mut network = Self {
            place,
            nodes: Vec::new(),
            edges: Vec::new(),
            outgoing: Vec::new(),
        };
        let hills = Hills::new(&mut dice);
        network.lay_grid(&hills, &mut dice);
        network.lay_ring(&hills, &mut dice);
        network.set_lights(&mut dice);
        network
    }

    fn lay_grid(&mut self, hills: &Hills, dice: &mut Dice) {
        let side = (GRID - 1) as f64 * SPACING;
        for row in 0..GRID {
            for column in 0..GRID {
                // A wide road bends little across its own direction; a street bends as it likes.
                let bend = |wide: bool| SPACING * if wide { 0.04 } else { 0.18 };
                let east = column as f64 * SPACING - side / 2.0;
                let north = row as f64 * SPACING - side / 2.0;
                let (sway_east, sway_north) = (bend(is_arterial(column)), bend(is_arterial(row)));
                self.add_node(
                    east + dice.between(-sway_east, sway_east),
                    north + dice.between(-sway_north, sway_north),
                    hills,
                );
            }
        }
        let node = |row: usize, column: usize| NodeId((row * GRID + column) as u32);
        let mut streets = Vec::new();
        for row in 0..GRID {
            for column in 0..GRID {
                if column + 1 < GRID {
                    streets.push((
                        node(row, column),
                        node(row, column + 1),
                        is_arterial(row),
                        row,
                    ));
                }
                if row + 1 < GRID {
                    streets.push((
                        node(row, column),
                        node(row + 1, column),
                        is_arterial(column),
                        GRID + column,
                    ));
                }
            }
        }
        for last in (1..streets.len()).rev() {
            streets.swap(last, dice.below(last + 1));
        }
        streets.sort_by_key(|street| !street.2); // stable: arterials first, so the tree uses them
        let line_limit: Vec<f64> = (0..2 * GRID)
            .map(|_| if dice.chance(0.4) { 70.0 } else { 50.0 })
            .collect();
        let mut trees = Trees::new(self.nodes.len());
        for (from, to, arterial, line) in streets {
            let needed = trees.join(from.0 as usize, to.0 as usize);
            if arterial {
                self.add_road(from, to, RoadClass::Arterial, line_limit[line]);
            } else if needed || !dice.chance(0.22) {
                let limit = if dice.chance(0.6) { 30.0 } else { 50.0 };
                self.add_road(from, to, RoadClass::Residential, limit);
            }
        }
    }

    fn lay_ring(&mut self, hills: &Hills, dice: &mut Dice) {
        let side = (GRID - 1) as f64 * SPACING;
        let radius = 0.78 * side; // just outside the grid's corners
        let ring: Vec<NodeId> = (0..RING)
            .map(|index| {
                let angle = index as f64 / RING as f64 * TAU;
                self.add_node(radius * angle.sin(), radius * angle.cos(), hills)
            })
            .collect();
        let slow_sector = dice.below(RING);
        for index in 0..RING {
            let slow = (index + RING - slow_sector) % RING < RING / 4;
            let limit = if slow { 100.0 } else { 120.0 };
            self.add_road(
                ring[index],
                ring[(index + 1) % RING],
                RoadClass::Motorway,
                limit,
            );
        }
        for line in (0..GRID).filter(|line| is_arterial(*line)) {
            let last = GRID - 1;
            for (row, column) in [(line, 0), (line, last), (0, line), (last, line)] {
                let end = NodeId((row * GRID + column) as u32);
                let here = &self.nodes[end.0 as usize];
                let angle = here.east.atan2(here.north).rem_euclid(TAU);
                let nearest = (angle / TAU * RING as f64).round() as usize % RING;
                self.add_road(end, ring[nearest], RoadClass::Arterial, 70.0);
            }
        }
    }

    fn set_lights(&mut self, dice: &mut Dice) {
        for index in 0..self.nodes.len() {
            let class = |edge: &EdgeId| self.edges[edge.0 as usize].class;
            let roads = &self.outgoing[index];
            let arterials = roads
                .iter()
                .filter(|e| class(e) == RoadClass::Arterial)
                .count();
            let motorway = roads.iter().any(|e| class(e) == RoadClass::Motorway);
            let busy = arterials > 2 || (arterials == 2 && roads.len() > 2 && dice.chance(0.3));
            if busy && !motorway {
                self.nodes[index].light = Some(TrafficLight {
                    cycle: dice.between(50.0, 80.0),
                    offset: dice.between(0.0, 80.0),
                });
            }
        }
    }

    fn add_node(&mut self, east: f64, north: f64, hills: &Hills) -> NodeId {
        self.nodes.push(Node {
            east,
            north,
            altitude: self.place.altitude + hills.height(east, north),
            light: None,
        });
        self.outgoing.push(Vec::new());
        NodeId(self.nodes.len() as u32 - 1)
    }

    fn add_road(&mut self, one: NodeId, other: NodeId, class: RoadClass, limit_km_h: f64) {
        for (from, to) in [(one, other), (other, one)] {
            let (a, b) = (self.node(from), self.node(to));
            let (east, north) = (b.east - a.east, b.north - a.north);
            let length = east.hypot(north);
            let edge = Edge {
                from,
                to,
                length,
                bearing: east.atan2(north).rem_euclid(TAU),
                class,
                limit: limit_km_h / 3.6,
                grade: (b.altitude - a.altitude) / length,
            };
            self.outgoing[from.0 as usize].push(EdgeId(self.edges.len() as u32));
            self.edges.push(edge);
        }
    }

    /// The place it lies in.
    pub fn place(&self) -> Place {
        self.place
    }

    /// The node behind an id of this network.
    pub fn node(&self, id: NodeId) -> &Node {
        &self.nodes[id.0 as usize]
    }

    /// The edge behind an id of this network.
    pub fn edge(&self, id: EdgeId) -> &Edge {
        &self.edges[id.0 as usize]
    }

    /// All nodes.
    pub fn nodes(&self) -> impl ExactSizeIterator<Item = NodeId> + use<> {
        (0..self.nodes.len() as u32).map(NodeId)
    }

    /// All directed edges.
    pub fn edges(&self) -> impl ExactSizeIterator<Item = EdgeId> + use<> {
        (0..self.edges.len() as u32).map(EdgeId)
    }

    /// The edges that leave a node.
    pub fn leaving(&self, node: NodeId) -> &[EdgeId] {
        &self.outgoing[node.0 as usize]
    }

    /// Metres east, north and above the sea of a point on a road.
    pub fn coordinates(&self, position: Position) -> (f64, f64, f64) {
        let edge = self.edge(position.edge);
        let (a, b) = (self.node(edge.from), self.node(edge.to));
        let share = (position.offset / edge.length).clamp(0.0, 1.0);
        (
            a.east + (b.east - a.east) * share,
            a.north + (b.north - a.north) * share,
            a.altitude + (b.altitude - a.altitude) * share,
        )
    }

    /// The highest speed (m/s) at which a car takes the turn from one edge into the next with this
    /// lateral acceleration (m/s²). The corner is an arc that begins `corner_cut` before the node.
    pub fn corner_speed(&self, from: EdgeId, to: EdgeId, lateral: f64) -> f64 {
        let (a, b) = (self.edge(from), self.edge(to));
        let turn = (b.bearing - a.bearing + PI).rem_euclid(TAU) - PI;
        let half = turn.abs() / 2.0;
        if half > PI / 2.0 - 0.05 {
            return 1.5; // turning back on the spot
        }
        let cut = a.class.min(b.class).corner_cut();
        let radius = cut / half.tan().max(1e-6);
        (lateral * radius).sqrt().max(1.5)
    }

    /// The quickest way between two nodes by driving time, as consecutive edges; empty if they are
    /// the same node.
    pub fn route(&self, from: NodeId, to: NodeId) -> Vec<EdgeId> {
        // Whole milliseconds order exactly, so that equal seeds give equal routes everywhere.
        let mut best = vec![u64::MAX; self.nodes.len()];
        let mut came_by: Vec<Option<EdgeId>> = vec![None; self.nodes.len()];
        let mut open = BinaryHeap::from([Reverse((0_u64, from))]);
        best[from.0 as usize] = 0;
        while let Some(Reverse((cost, node))) = open.pop() {
            if node == to {
                break;
            }
            if cost > best[node.0 as usize] {
                continue;
            }
            for &id in self.leaving(node) {
                let edge = self.edge(id);
                let wait = if self.node(edge.to).light.is_some() {
                    8.0
                } else {
                    2.0
                };
                let next = cost + ((edge.length / edge.limit + wait) * 1_000.0) as u64;
                let known = &mut best[edge.to.0 as usize];
                if next < *known {
                    *known = next;
                    came_by[edge.to.0 as usize] = Some(id);
                    open.push(Reverse((next, edge.to)));
                }
            }
        }
        let mut route = Vec::new();
        let mut node = to;
        while node != from
            && let Some(id) = came_by[node.0 as usize]
        {
            route.push(id);
            node = self.edge(id).from;
        }
        route.reverse();
        route
    }
}

fn is_arterial(line: usize) -> bool {
    line % 5 == 2
}

/// Gentle hills: a sum of three long waves, at most about 4 % steep.
struct Hills {
    waves: [(f64, f64, f64, f64); 3],
}

impl Hills {
    fn new(dice: &mut Dice) -> Self {
        let waves = std::array::from_fn(|_| {
            let direction = dice.between(0.0, TAU);
            let length = dice.between(4_000.0, 9_000.0);
            (
                direction.sin() * TAU / length,
                direction.cos() * TAU / length,
                dice.between(0.0, TAU),
                dice.between(6.0, 18.0),
            )
        });
        Self { waves }
    }

    fn height(&self, east: f64, north: f64) -> f64 {
        let wave = |&(x, y, phase, height): &(f64, f64, f64, f64)| {
            height * (x * east + y * north + phase).sin()
        };
        self.waves.iter().map(wave).sum()
    }
}

/// Union-find: which nodes hang together already.
struct Trees {
    parent: Vec<usize>,
}

impl Trees {
    fn new(count: usize) -> Self {
        Self {
            parent: (0..count).collect(),
        }
    }

    fn root(&mut self, mut node: usize) -> usize {
        while self.parent[node] != node {
            self.parent[node] = self.parent[self.parent[node]];
            node = self.parent[node];
        }
        node
    }

    /// Joins two trees; false if they were one already.
    fn join(&mut self, a: usize, b: usize) -> bool {
        let (a, b) = (self.root(a), self.root(b));
        self.parent[a] = b;
        a != b
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_place_can_be_reached_and_routes_are_consecutive() {
        for seed in 0..6 {
            let network = RoadNetwork::generate(Place::STUTTGART, seed);
            let home = NodeId(0);
            for node in network.nodes().skip(1) {
                let there = network.route(home, node);
                assert!(!there.is_empty(), "seed {seed}: {node:?} cannot be reached");
                assert_eq!(network.edge(there[0]).from, home);
                assert_eq!(network.edge(*there.last().unwrap()).to, node);
                for pair in there.windows(2) {
                    assert_eq!(network.edge(pair[0]).to, network.edge(pair[1]).from);
                }
            }
            assert!(network.route(home, home).is_empty());
        }
    }

    #[test]
    fn the_network_is_plausible() {
        let network = RoadNetwork::generate(Place::STUTTGART, 1);
        let mut classes = [0; 3];
        for edge in network.edges().map(|id| network.edge(id)) {
            classes[edge.class as usize] += 1;
            assert!(edge.length > 100.0 && edge.length < 4_000.0, "{edge:?}");
            assert!(edge.grade.abs() < 0.08, "{edge:?}");
        }
        assert!(classes.iter().all(|count| *count >= 50), "{classes:?}");
        let lights = network
            .nodes()
            .filter(|id| network.node(*id).light.is_some())
            .count();
        assert!((20..150).contains(&lights), "{lights} lights");
    }

    #[test]
    fn the_same_seed_makes_the_same_roads() {
        let print = |seed| format!("{:?}", RoadNetwork::generate(Place::STUTTGART, seed).edges);
        assert_eq!(print(5), print(5));
        assert_ne!(print(5), print(6));
    }

    #[test]
    fn degrees_agree_with_the_great_circle() {
        let (lat, lon) = Place::STUTTGART.degrees(3_000.0, 4_000.0);
        let to_radians = |a: f64, b: f64| (a.to_radians(), b.to_radians());
        let (la, lo) = to_radians(Place::STUTTGART.latitude, Place::STUTTGART.longitude);
        let (lb, lp) = to_radians(lat, lon);
        let h =
            ((lb - la) / 2.0).sin().powi(2) + la.cos() * lb.cos() * ((lp - lo) / 2.0).sin().powi(2);
        let metres = 2.0 * 6_371_009.0 * h.sqrt().asin();
        assert!((metres - 5_000.0).abs() < 25.0, "{metres}");
    }

    #[test]
    fn lights_give_way_to_each_axis_in_turn_and_never_to_both() {
        let light = TrafficLight {
            cycle: 60.0,
            offset: 0.0,
        };
        let (north, east) = (0.0, PI / 2.0);
        let mut open = [0, 0];
        for second in 0..60 {
            let state = [north, east].map(|bearing| !light.is_red(f64::from(second), bearing));
            assert_ne!(state, [true, true], "both may go at {second}");
            open[0] += usize::from(state[0]);
            open[1] += usize::from(state[1]);
        }
        assert!(
            open.iter().all(|seconds| (24..=30).contains(seconds)),
            "{open:?}"
        );
    }
}
