//! What the tests with real processes share: daemons, an NBD client that keeps a model of what was
//! acknowledged, the network between two sites.
