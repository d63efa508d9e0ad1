"""A large swarm in virtual time: the product's own decisions about a pool that is made up."""
