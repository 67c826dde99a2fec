//! Pannier as its users meet it: the binary, real NBD clients, processes that are killed, a network
//! that is slow and breaks.

#![expect(clippy::unwrap_used, clippy::print_stdout, reason = "tests fail by panicking and print")]

mod bad_input;
mod both_hosts;
mod broken_links;
mod demo;
mod etcd;
mod harness;
mod kill;
mod moves;
mod real_clients;
