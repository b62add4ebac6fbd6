use super::world::run;

#[test]
fn a_seed_gives_the_same_run_twice_and_commands_are_executed() {
    let mut executed = 0;
    for seed in 0..4 {
        let one = run(seed);
        assert_eq!(one, run(seed), "seed {seed}");
        executed += one.counts.executed_local + one.counts.executed_quorum;
    }
    assert!(executed > 50, "{executed}");
}
