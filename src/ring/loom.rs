//! Every order in which threads can hand slots to each other, on the ring itself: loom tries them
//! one by one, what relaxed memory lets a processor see included. The process's own ring is a
//! static, which loom does not model.

use std::collections::HashSet;

use ::loom::sync::Arc;
use ::loom::thread;

use super::Ring;
use crate::queue::loom::in_every_order;

const SLOT_BYTES: usize = 16;

/// Uses a ring as a load does: takes what there is, puts the first of it back, keeps the rest till
/// the end.
fn load(ring: &Ring, wanted: usize) {
    let mut lease = ring.lend(wanted, usize::MAX, 0).unwrap();
    let slot = lease.take().expect("a load never waits for another");
    let more = lease.take();
    lease.put(slot);
    if let Some(more) = more {
        lease.put(more);
    }
}

/// What must hold when every lease is back: none is lost, none is there twice, none is too many.
fn check(ring: &Ring) {
    let idle = super::locked(&ring.free);
    let addresses: HashSet<_> = idle.iter().map(|slot| slot.as_slice().as_ptr()).collect();
    assert_eq!(addresses.len(), idle.len(), "a slot is there twice");
    assert_eq!(idle.len(), ring.made(), "slots and their number");
    assert!(idle.len() <= ring.slots_max, "too many are kept");
}

#[test]
fn a_lease_ends_while_its_slots_are_made() {
    in_every_order("a lease that ends early", 3, || {
        let ring = Ring::new(SLOT_BYTES, 3, 2);
        load(&ring, 3);
        check(&ring);
        assert!(ring.made() >= 1);
    });
}

#[test]
fn two_leases_share_a_ring_with_a_limit() {
    in_every_order("two leases", 3, || {
        let ring = Arc::new(Ring::new(SLOT_BYTES, 2, 1));
        let other = Arc::clone(&ring);
        let thread = thread::spawn(move || load(&other, 2));
        load(&ring, 2);
        thread.join().unwrap();
        check(&ring);
    });
}

#[test]
fn more_leases_than_slots() {
    in_every_order("three leases, one slot", 2, || {
        let ring = Arc::new(Ring::new(SLOT_BYTES, 1, 1));
        let threads: Vec<_> = (0..2)
            .map(|_| {
                let ring = Arc::clone(&ring);
                thread::spawn(move || load(&ring, 1))
            })
            .collect();
        load(&ring, 1);
        for thread in threads {
            thread.join().unwrap();
        }
        check(&ring);
    });
}

#[test]
fn slots_are_released_while_they_are_lent() {
    in_every_order("release against a lease", 3, || {
        let ring = Arc::new(Ring::new(SLOT_BYTES, 2, 1));
        load(&ring, 1);
        let other = Arc::clone(&ring);
        let thread = thread::spawn(move || other.release());
        load(&ring, 2);
        thread.join().unwrap();
        check(&ring);
        ring.release();
        assert_eq!((ring.made(), ring.idle()), (0, 0));
    });
}
