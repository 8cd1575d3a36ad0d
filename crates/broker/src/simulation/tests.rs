//! What runs with every build: a fixed set of seeds, the same run twice, and the planted faults.

use super::{Detail, Fault, Options, run};

/// Seeds of one test; there are several so that they run side by side.
fn seeds_hold(seeds: std::ops::Range<u64>) {
    for seed in seeds {
        if let Err(failure) = run(Options::new(seed)) {
            panic!("{failure}");
        }
    }
}

#[test]
fn a_fixed_set_of_seeds_holds_1() {
    seeds_hold(0..1000);
}

#[test]
fn a_fixed_set_of_seeds_holds_2() {
    seeds_hold(1000..2000);
}

#[test]
fn a_fixed_set_of_seeds_holds_3() {
    seeds_hold(2000..3000);
}

#[test]
fn a_fixed_set_of_seeds_holds_4() {
    seeds_hold(3000..4000);
}

#[test]
fn a_seed_makes_the_same_run_twice() {
    for seed in 0..40 {
        let digest = || {
            run(Options {
                detail: Detail::Last(1),
                ..Options::new(seed)
            })
            .map(|report| report.digest)
            .map_err(|failure| failure.to_string())
        };
        assert_eq!(digest(), digest(), "seed {seed}");
    }
}

#[test]
fn every_planted_fault_is_found() {
    const WITHIN: u64 = 1_500;
    let mut unfound = Vec::new();
    for fault in Fault::ALL {
        let found = (0..WITHIN).find_map(|seed| {
            run(Options {
                fault: Some(*fault),
                ..Options::new(seed)
            })
            .err()
        });
        match found {
            Some(failure) => eprintln!(
                "{fault}: found after {} seeds: {}",
                failure.options.seed + 1,
                failure.invariant
            ),
            None => unfound.push(*fault),
        }
    }
    assert!(
        unfound.is_empty(),
        "not found within {WITHIN} seeds: {unfound:?}"
    );
}
