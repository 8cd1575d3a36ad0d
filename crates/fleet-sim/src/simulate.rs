//! Simulation: what `milepost simulate` and `milepost demo` do, in one piece. Provisions vehicles
//! through the HTTP API as a factory would, then drives them over MQTT.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use crate::client::Server;
use crate::fleet::{Drive, Fleet, FleetError, FleetOptions, FleetReport, Live};
use crate::provision::{Factory, Order, ProvisionError};
use crate::recording::{Recording, RecordingError, Speed};
use crate::synthetic::{City, Place, Powertrain, VirtualVehicle};

/// A recording to be replayed, as named on a command line.
#[derive(Debug, Clone, Default)]
pub struct RecordingFiles {
    /// Candump log, drive cycle or truck signals.
    pub recording: PathBuf,
    /// What decodes the frames of a candump log. Without it they are kept raw, or decoded by what
    /// the vehicle's model has already.
    pub dbc: Option<PathBuf>,
    /// Positions beside a candump log.
    pub gnss: Option<PathBuf>,
    /// From DBC signals to VSS, TOML; common names are known without.
    pub mapping: Option<PathBuf>,
}

/// What to simulate.
#[derive(Debug, Clone)]
pub struct SimulateOptions {
    /// MQTT over TLS.
    pub server: Server,
    /// HTTP API, such as `http://127.0.0.1:8080`.
    pub api: String,
    /// How many vehicles.
    pub vehicles: usize,
    /// Id of the vehicle, if it is only one; else `vehicle-0001` and so on, or for recordings the
    /// name of the model or the file with such numbers.
    pub vehicle: Option<String>,
    /// When to stop; without it at the end of the recording, or only when cancelled.
    pub duration: Option<Duration>,
    /// What to replay; without it drives are synthetic.
    pub recording: Option<RecordingFiles>,
    /// How fast time goes by.
    pub speed: Speed,
    /// Time between messages, or that one message of a recording spans.
    pub interval: Duration,
    /// What synthetic drives follow from.
    pub seed: u64,
    /// Where keys and certificates are kept for the next time.
    pub credentials: Option<PathBuf>,
}

impl SimulateOptions {
    /// One message per second of `vehicles` synthetic vehicles, until cancelled.
    pub fn new(server: Server, api: impl Into<String>, vehicles: usize) -> Self {
        Self {
            server,
            api: api.into(),
            vehicles,
            vehicle: None,
            duration: None,
            recording: None,
            speed: Speed::REAL,
            interval: Duration::from_secs(1),
            seed: 1,
            credentials: None,
        }
    }
}

/// Why a simulation cannot run.
#[derive(Debug, thiserror::Error)]
pub enum SimulateError {
    /// The options contradict each other.
    #[error("{problem}")]
    Options {
        /// What is wrong and what to do.
        problem: String,
    },
    /// A file cannot be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// The mapping is none.
    #[error("{} is no mapping", path.display())]
    Mapping {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: Box<signals::MappingError>,
    },
    /// The DBC is none.
    #[error("{} is no DBC that can be used", path.display())]
    Dbc {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: Box<signals::can::DbcError>,
    },
    /// The recording cannot be replayed.
    #[error(transparent)]
    Recording(#[from] RecordingError),
    /// Vehicles cannot be provisioned.
    #[error(transparent)]
    Provision(#[from] ProvisionError),
    /// The fleet cannot run.
    #[error(transparent)]
    Fleet(#[from] FleetError),
}

/// A simulation whose vehicles exist and have their certificates.
pub struct Simulation {
    fleet: Fleet,
}

/// What the server has to know of a model.
struct ModelFiles {
    name: String,
    dbc: String,
    mapping: Option<String>,
}

impl Simulation {
    /// Checks files and options, then provisions. `progress` hears how many vehicles of how many
    /// are provisioned.
    ///
    /// # Errors
    /// [`SimulateError`]; nothing is sent before all files are found good.
    pub async fn prepare(
        options: SimulateOptions,
        progress: impl Fn(usize, usize) + Send + Sync + 'static,
    ) -> Result<Self, SimulateError> {
        let ids = vehicle_ids(&options)?;
        let (drive, model) = match &options.recording {
            None => (
                Drive::Synthetic {
                    place: Place::STUTTGART,
                    seed: options.seed,
                },
                None,
            ),
            Some(files) => {
                let recording = Recording::open(&files.recording, files.gnss.as_deref())?;
                let model = model_files(files, &recording)?;
                (Drive::Recorded(recording), model)
            }
        };
        let factory = Factory::new(&options.api)?;
        let orders = match &drive {
            Drive::Synthetic { place, seed } => {
                let orders = synthetic_orders(&ids, *place, *seed);
                let mut models: Vec<_> = orders.iter().filter_map(|o| o.model.clone()).collect();
                models.sort();
                models.dedup();
                for model in models {
                    factory.put_model(&model, None, None).await?;
                }
                orders
            }
            Drive::Recorded(_) => {
                if let Some(model) = &model {
                    factory
                        .put_model(&model.name, Some(&model.dbc), model.mapping.as_deref())
                        .await?;
                }
                ids.iter()
                    .map(|id| Order {
                        model: model.as_ref().map(|model| model.name.clone()),
                        ..Order::vehicle(id)
                    })
                    .collect()
            }
        };
        let credentials = factory
            .provision(&orders, options.credentials.as_deref(), progress)
            .await?;
        let fleet = Fleet::new(FleetOptions {
            drive,
            interval: options.interval,
            duration: options.duration,
            speed: options.speed,
            ..FleetOptions::new(options.server, credentials)
        })?;
        Ok(Self { fleet })
    }

    /// For watching it run.
    pub fn live(&self) -> Arc<Live> {
        self.fleet.live()
    }

    /// Drives; see [`Fleet::run`].
    ///
    /// # Errors
    /// See [`Fleet::run`].
    pub async fn run(self, stop: CancellationToken) -> Result<FleetReport, SimulateError> {
        Ok(self.fleet.run(stop).await?)
    }
}

fn vehicle_ids(options: &SimulateOptions) -> Result<Vec<String>, SimulateError> {
    match (&options.vehicle, options.vehicles) {
        (_, 0) => Err(SimulateError::Options {
            problem: "0 vehicles do not drive; ask for at least 1".into(),
        }),
        (Some(id), 1) => Ok(vec![id.clone()]),
        (Some(id), many) => Err(SimulateError::Options {
            problem: format!("`{id}` is the name of one vehicle, not of {many}; leave one away"),
        }),
        (None, many) => {
            // Vehicles of a recording are of its model, so they cannot be those of another one.
            let name = options
                .recording
                .as_ref()
                .map_or("vehicle".into(), |files| {
                    legal_name(files.dbc.as_ref().unwrap_or(&files.recording))
                });
            Ok((1..=many).map(|n| format!("{name}-{n:04}")).collect())
        }
    }
}

/// Reads DBC and mapping, and tries them before the server has to.
fn model_files(
    files: &RecordingFiles,
    recording: &Recording,
) -> Result<Option<ModelFiles>, SimulateError> {
    let Some(path) = &files.dbc else {
        return match &files.mapping {
            None => Ok(None),
            Some(mapping) => Err(SimulateError::Options {
                problem: format!(
                    "{} maps the signals of a DBC; name the DBC too",
                    mapping.display()
                ),
            }),
        };
    };
    if !recording.is_raw_can() {
        return Err(SimulateError::Options {
            problem: format!(
                "{} decodes CAN frames; {} has none",
                path.display(),
                files.recording.display()
            ),
        });
    }
    let bytes = fs::read(path).map_err(|source| unreadable(path, source))?;
    let dbc = signals::can::dbc_text(&bytes).into_owned();
    let mapping = match &files.mapping {
        None => None,
        Some(path) => {
            let text = fs::read_to_string(path).map_err(|source| unreadable(path, source))?;
            let parsed =
                signals::Mapping::parse(&text).map_err(|source| SimulateError::Mapping {
                    path: path.clone(),
                    source: Box::new(source),
                })?;
            Some((text, parsed))
        }
    };
    let parsed = mapping.as_ref().map(|(_, parsed)| parsed);
    signals::CanDecoder::new(&dbc, parsed).map_err(|source| SimulateError::Dbc {
        path: path.clone(),
        source: Box::new(source),
    })?;
    Ok(Some(ModelFiles {
        name: legal_name(path),
        dbc,
        mapping: mapping.map(|(text, _)| text),
    }))
}

/// What a file is called, in the letters that ids may have.
fn legal_name(path: &Path) -> String {
    let stem = path.file_stem().unwrap_or_default().to_string_lossy();
    let name: String = stem
        .chars()
        .take(100)
        .map(|c| match c {
            'A'..='Z' | 'a'..='z' | '0'..='9' | '.' | '_' | ':' | '-' => c,
            _ => '-',
        })
        .collect();
    if name.is_empty() {
        "recorded".to_owned()
    } else {
        name
    }
}

fn synthetic_orders(ids: &[String], place: Place, seed: u64) -> Vec<Order> {
    let city = City::new(place, seed);
    ids.iter()
        .map(|id| {
            let vehicle = city.vehicle(id, 0);
            Order {
                vin: Some(vehicle.vin().to_owned()),
                model: Some(synthetic_model(&vehicle)),
                attributes: [
                    ("city".to_owned(), place.name.to_owned()),
                    ("powertrain".to_owned(), powertrain(&vehicle).to_owned()),
                ]
                .into(),
                ..Order::vehicle(id)
            }
        })
        .collect()
}

fn powertrain(vehicle: &VirtualVehicle) -> &'static str {
    match vehicle.powertrain() {
        Powertrain::Electric(_) => "electric",
        Powertrain::Combustion(_) => "combustion",
    }
}

/// Named after what tells models apart: battery in kWh or tank in litres.
fn synthetic_model(vehicle: &VirtualVehicle) -> String {
    match vehicle.powertrain() {
        Powertrain::Electric(battery) => format!("virtual-e{:.0}", battery.capacity),
        Powertrain::Combustion(engine) => format!("virtual-c{:.0}", engine.capacity),
    }
}

fn unreadable(path: &Path, source: std::io::Error) -> SimulateError {
    SimulateError::Read {
        path: path.to_owned(),
        source,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(vehicles: usize, vehicle: Option<&str>) -> SimulateOptions {
        SimulateOptions {
            vehicle: vehicle.map(str::to_owned),
            ..SimulateOptions::new("localhost:1".parse().unwrap(), "http://localhost", vehicles)
        }
    }

    #[test]
    fn vehicles_are_named_or_numbered() {
        for (vehicles, vehicle, expected) in [
            (2, None, Some("vehicle-0001 vehicle-0002")),
            (1, Some("car-7"), Some("car-7")),
            (2, Some("car-7"), None),
            (0, None, None),
        ] {
            let ids = vehicle_ids(&options(vehicles, vehicle)).ok();
            assert_eq!(ids.map(|ids| ids.join(" ")).as_deref(), expected);
        }
    }

    #[test]
    fn models_are_called_as_their_files_in_legal_letters() {
        for (path, expected) in [
            ("a/toyota_new_mc_pt.dbc", "toyota_new_mc_pt"),
            ("My Truck (v2).dbc", "My-Truck--v2-"),
            ("", "recorded"),
        ] {
            assert_eq!(legal_name(Path::new(path)), expected);
        }
    }

    #[test]
    fn synthetic_vehicles_keep_model_and_vin_from_run_to_run() {
        let ids = vec!["vehicle-0001".to_owned(), "vehicle-0002".to_owned()];
        let orders = synthetic_orders(&ids, Place::STUTTGART, 1);
        assert_eq!(orders, synthetic_orders(&ids, Place::STUTTGART, 1));
        assert_ne!(orders[0].vin, orders[1].vin);
        assert!(orders.iter().all(|order| order.model.is_some()));
    }
}
