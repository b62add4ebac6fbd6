//! The small configurations hold, and every known mistake is found. `ringwal-model check` does them all.

use crate::configuration::{Configuration, Variant};
use crate::report::run;

#[test]
fn everything_holds_in_every_state() {
    for name in ["reports", "lease", "extend", "snapshot"] {
        let mut all = Configuration::checked().into_iter();
        let configuration = all.find(|it| it.name == name).expect("it is in the list");
        let seen = run(configuration, 2);
        assert!(seen.broken.is_none(), "{name}: {:?}", seen.broken);
        assert!(seen.unreached.is_empty(), "{name} never saw {:?}", seen.unreached);
    }
}

#[test]
fn every_known_mistake_is_refuted() {
    for variant in Variant::ALL {
        let seen = run(variant.configuration(), 1);
        assert!(seen.broken.is_some(), "{} in {} states", variant.name(), seen.states);
    }
}

/// It is the mistake that is refuted: without it, its configuration holds. Those that are left out here
/// are in `check`, in configurations at least as large.
#[test]
fn without_the_mistake_it_holds() {
    for variant in Variant::ALL {
        let mut configuration = variant.configuration();
        configuration.variant = None;
        if configuration.terms < 3 && !configuration.machine {
            let seen = run(configuration, 2);
            assert!(seen.broken.is_none(), "{}: {:?}", variant.name(), seen.broken);
        }
    }
}
