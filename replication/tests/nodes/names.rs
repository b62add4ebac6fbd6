//! Other ways to write where a node is: IPv6, and names of hosts, in the text of a configuration.

use super::*;

/// The configuration of a node as an operator writes it.
fn text(cluster: &Cluster, node: usize) -> String {
    let member = |(node, address): (usize, &String)| {
        format!("    {{ node = {node}, address = \"{address}\" }},\n")
    };
    let members: String = (1..).zip(&cluster.addresses).map(member).collect();
    format!(
        "cluster = \"6f1d8c0a-52b7-4a59-9f0e-3f8c2d7b1e44\"\nnode = {node}\nlisten = \"{}\"\n\
         members = [\n{members}]\n",
        cluster.addresses[node - 1]
    )
}

fn replicates_on(host: &str) {
    let cluster = match Cluster::on(3, host) {
        Ok(cluster) => cluster,
        Err(error) => return println!("SKIPPED: this machine has no {host}: {error}"),
    };
    let nodes = [1, 2, 3].map(|node| {
        let config = Config::from_toml(&text(&cluster, node)).expect("a sound configuration");
        Node::start(cluster.engine(node), config).expect("the node starts")
    });
    let leadership = nodes[0].lead(1).expect("a new epoch");
    for number in 0..20 {
        let pending = leadership.append(STREAM, record(number), Ack::Quorum).expect("it leads");
        pending.wait().expect("a majority");
    }
    let expected = contents(&nodes[0], STREAM);
    for follower in &nodes[1..] {
        wait_end(follower, STREAM, 20);
        assert!(contents(follower, STREAM) == expected);
    }
    for (follower, address) in nodes[0].stats().followers.iter().zip(&cluster.addresses[1..]) {
        assert_eq!(&follower.address, address);
    }
    nodes.into_iter().for_each(stop);
}

#[test]
fn nodes_are_reached_by_ipv6() {
    replicates_on("[::1]");
}

#[test]
fn nodes_are_reached_by_the_name_of_their_host() {
    replicates_on("localhost");
}
