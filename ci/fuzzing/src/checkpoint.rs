//! The part of the product's module that says which shards an index may name.

#[path = "../../../src/checkpoint/location.rs"]
pub(crate) mod location;
