//! The protocol holds, and every known mistake is found.

use crate::configuration::{Configuration, Variant};
use crate::report::run;

#[test]
fn everything_holds_in_every_state() {
    for configuration in Configuration::checked() {
        let name = configuration.name;
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

/// The same configuration without the mistake holds: it is the mistake that is refuted.
#[test]
fn without_the_mistake_it_holds() {
    for variant in Variant::ALL {
        let mut configuration = variant.configuration();
        configuration.variant = None;
        let seen = run(configuration, 2);
        assert!(seen.broken.is_none(), "{}: {:?}", variant.name(), seen.broken);
    }
}
