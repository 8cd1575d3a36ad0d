//! Synthetic drives: vehicles that obey physics on made-up roads in a real place.
//!
//! One [`City`] (roads, shared) makes any number of [`VirtualVehicle`]s; each is advanced to a
//! moment and hands out the messages it has for it. Nothing here knows sockets or clocks: the same
//! seed, id and moments give the same bytes.

mod faults;
mod motion;
mod powertrain;
mod roads;
mod trip;
mod tyres;
mod vehicle;

pub use motion::{
    BOLDEST, DriverStyle, HARSHEST_BRAKING, Motion, ORDINARY_BRAKING, Progress,
    STRONGEST_ACCELERATION,
};
pub use powertrain::{Battery, Body, Engine, Powertrain};
pub use roads::{
    Edge, EdgeId, Node, NodeId, Place, Position, RoadClass, RoadNetwork, TrafficLight,
};
pub use trip::Trip;
pub use vehicle::{City, Doing, VirtualVehicle};
