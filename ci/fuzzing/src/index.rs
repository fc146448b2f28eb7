//! Any bytes as `model.safetensors.index.json`.

use std::collections::BTreeMap;
use std::path::{Component, PathBuf};

use serde_json::Value;

use crate::checkpoint::location::is_below;
use crate::format::index::Index;
use crate::source::Address;
use crate::source::address::Parts;

/// Panics unless our reader finds in an index what is in its JSON tree, and lets only names pass that
/// stay below the index's folder.
pub fn check(text: &[u8]) {
    let ours = Index::parse(text);
    if let Ok(tree) = serde_json::from_slice(text) {
        compare(ours.as_ref().ok(), &tree);
    }
    let Ok(index) = ours else { return };
    let shards = index.shards();
    assert!(shards.is_sorted_by(|left, right| left < right), "disagreement: {shards:?}");
    for (name, shard) in index.tensors() {
        assert_eq!(index.shard_of(name), Some(shard));
        assert!(shards.binary_search(&shard).is_ok());
    }
    shards.into_iter().for_each(check_name);
}

fn compare(ours: Option<&Index>, tree: &Value) {
    let theirs = weight_map(tree);
    if ours.is_some() {
        assert_eq!(ours.map(table), theirs, "disagreement: {tree}");
        return;
    }
    // A field that stands twice is refused, where a tree takes the last: written anew, each stands once.
    let again = Index::parse(tree.to_string().as_bytes()).ok();
    assert_eq!(again.as_ref().map(table), theirs, "disagreement: {tree}");
}

fn table(index: &Index) -> BTreeMap<&str, &str> {
    index.tensors().collect()
}

/// The map of an index, or of what serde's derive takes for one: an array of the one field.
fn weight_map(tree: &Value) -> Option<BTreeMap<&str, &str>> {
    let map = match tree {
        Value::Object(fields) => fields.get("weight_map")?,
        Value::Array(fields) if fields.len() == 1 => &fields[0],
        _ => return None,
    };
    map.as_object()?.iter().map(|(name, shard)| Some((name.as_str(), shard.as_str()?))).collect()
}

fn check_name(name: &str) {
    let plain = |character: char| character.is_ascii_alphanumeric() || "-_.".contains(character);
    if !is_below(name) {
        let ordinary = !name.is_empty() && !name.starts_with('.') && name.chars().all(plain);
        assert!(!ordinary, "disagreement: {name:?} is refused");
        return;
    }
    let parts: Vec<&str> = name.split('/').collect();
    assert!(!name.contains(['\0', '\\']) && !parts.contains(&"..") && !parts[0].is_empty());
    let beside = |index: &str| Address::from(PathBuf::from(index)).beside(name);
    let local = beside("/models/m/model.safetensors.index.json");
    assert!(local.path().starts_with("/models/m/"), "disagreement: {local:?}");
    assert!(!local.path().components().any(|part| part == Component::ParentDir));
    let web = beside("https://host/models/m/model.safetensors.index.json?sig=1");
    let Ok(Parts::Web(url)) = web.parts() else { panic!("disagreement: {name:?} is no address") };
    let stays = url.host_str() == Some("host") && url.query() == Some("sig=1");
    assert!(stays && url.path().starts_with("/models/m/"), "disagreement: {url}");
    // The key of an object may be refused when it is opened; it never is another folder's.
    if let Ok(Parts::Object { bucket, key, .. }) =
        beside("s3://bucket/models/m/model.safetensors.index.json").parts()
    {
        let stays = bucket == "bucket" && key.as_ref().starts_with("models/m/");
        assert!(stays, "disagreement: {bucket:?} {key:?}");
    }
}
