//! Asks whether a defect was planted here, to show that the simulation finds it. Outside of tests and of
//! the feature `simulation` the question is `false` at compile time, and the switch does not exist.

#[cfg(any(test, feature = "simulation"))]
macro_rules! planted {
    ($exchange:expr, $fault:ident) => {
        $exchange.fault == Some(crate::simulation::Fault::$fault)
    };
}

#[cfg(not(any(test, feature = "simulation")))]
macro_rules! planted {
    ($exchange:expr, $fault:ident) => {
        false
    };
}

pub(crate) use planted;
