//! Runs the checker and prints what it saw.

use std::time::{Duration, Instant};

use anyhow::bail;
use stateright::{Checker, Expectation, HasDiscoveries, Model};

use crate::configuration::{Configuration, Variant};
use crate::narrate;
use crate::state::State;
use crate::step::{Action, Epochs};

/// States with the action that follows each; the last has none.
type Way = Vec<(State, Option<Action>)>;

/// What was seen of one configuration.
pub struct Seen {
    pub states: usize,
    pub depth: usize,
    pub took: Duration,
    /// A property that does not hold, and the way there.
    pub broken: Option<(&'static str, Way)>,
    /// What should have been reached and was not.
    pub unreached: Vec<&'static str>,
}

/// Breadth first: with one thread, a way to a violation is a shortest one, and the counts are the same
/// every time.
pub fn run(configuration: Configuration, threads: usize) -> Seen {
    let began = Instant::now();
    let checker = Epochs::new(configuration)
        .checker()
        .threads(threads)
        .finish_when(HasDiscoveries::AnyFailures)
        .spawn_bfs()
        .join();
    let took = began.elapsed();
    let mut broken = None;
    let mut unreached = Vec::new();
    for property in checker.model().properties() {
        let found = checker.discovery(property.name);
        match (property.expectation, found) {
            (Expectation::Sometimes, None) => unreached.push(property.name),
            (Expectation::Always, Some(path)) if broken.is_none() => {
                broken = Some((property.name, path.into_vec()));
            }
            _ => {}
        }
    }
    Seen {
        states: checker.unique_state_count(),
        depth: checker.max_depth(),
        took,
        broken,
        unreached,
    }
}

/// True when every property holds in every state, and what should be reached was.
pub fn check(names: &[String], threads: usize) -> anyhow::Result<bool> {
    let all = Configuration::checked();
    let known: Vec<_> = all.iter().map(|it| it.name).collect();
    know(names, &known)?;
    let (mut well, mut states) = (true, 0);
    for configuration in all.into_iter().filter(|it| wanted(names, it.name)) {
        let (name, what) = (configuration.name, configuration.what);
        let seen = run(configuration, threads);
        states += seen.states;
        println!(
            "{name:<14} {:>10} states, depth {:>2}, {:>5.1} s  {what}",
            seen.states,
            seen.depth,
            seen.took.as_secs_f64()
        );
        if let Some((property, way)) = &seen.broken {
            well = false;
            println!("  does not hold: {property}");
            tell(way);
        } else {
            for property in &seen.unreached {
                well = false;
                println!("  never happened: {property}");
            }
        }
    }
    println!("{states} states: {}", if well { "everything holds" } else { "NOT everything holds" });
    Ok(well)
}

/// True when every known mistake is refuted.
pub fn refute(names: &[String], brief: bool) -> anyhow::Result<bool> {
    know(names, &Variant::ALL.map(Variant::name))?;
    let mut well = true;
    for variant in Variant::ALL.into_iter().filter(|it| wanted(names, it.name())) {
        let seen = run(variant.configuration(), 1);
        print!("{:<30} ", variant.name());
        match &seen.broken {
            Some((property, way)) => {
                let steps = way.len() - 1;
                println!("refuted after {:>8} states, {steps:>2} steps: {property}", seen.states);
                if !brief {
                    println!("  {}", variant.what());
                    tell(way);
                }
            }
            None => {
                well = false;
                println!("NOT REFUTED in all of its {} states", seen.states);
            }
        }
    }
    Ok(well)
}

fn tell(way: &[(State, Option<Action>)]) {
    for (number, (state, action)) in way.iter().enumerate() {
        let Some(action) = action else { continue };
        println!("  {:>2}. {}", number + 1, narrate::step(state, *action));
        if let Some((after, _)) = way.get(number + 1) {
            println!("      {}", narrate::nodes(after));
        }
    }
}

fn wanted(names: &[String], name: &str) -> bool {
    names.is_empty() || names.iter().any(|it| it == name)
}

fn know(names: &[String], known: &[&str]) -> anyhow::Result<()> {
    if let Some(name) = names.iter().find(|name| !known.contains(&name.as_str())) {
        bail!("{name} is not known; there are {}", known.join(", "));
    }
    Ok(())
}
