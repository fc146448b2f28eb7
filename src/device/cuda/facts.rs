//! Where a GPU sits in its host, by NVML where there is one. Nothing here is an error.

use nvml_wrapper::Nvml;

/// What is known of a GPU; what is not is none.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Facts {
    /// Generation of its PCI Express link, now: links that idle are slow.
    pub(crate) pcie_generation: Option<u32>,
    /// The highest that GPU and host have in common.
    pub(crate) pcie_generation_max: Option<u32>,
    /// Lanes of the link, now.
    pub(crate) pcie_width: Option<u32>,
    /// The most that GPU and host have in common.
    pub(crate) pcie_width_max: Option<u32>,
    /// The NUMA node of the host that it is attached to.
    pub(crate) numa_node: Option<u32>,
    /// Free bytes of its memory.
    pub(crate) memory_free: Option<u64>,
    /// All bytes of its memory.
    pub(crate) memory_total: Option<u64>,
}

impl Facts {
    /// Of the GPU at an address of the PCI bus.
    pub(super) fn of(bus_id: &str) -> Self {
        let told = Nvml::init().ok().and_then(|nvml| {
            let device = nvml.device_by_pci_bus_id(bus_id).ok()?;
            let memory = device.memory_info().ok();
            Some(Self {
                pcie_generation: device.current_pcie_link_gen().ok(),
                pcie_generation_max: device.max_pcie_link_gen().ok(),
                pcie_width: device.current_pcie_link_width().ok(),
                pcie_width_max: device.max_pcie_link_width().ok(),
                numa_node: device.numa_node_id().ok(),
                memory_free: memory.as_ref().map(|memory| memory.free),
                memory_total: memory.as_ref().map(|memory| memory.total),
            })
        });
        let facts = told.unwrap_or_default();
        Self { numa_node: node_of(bus_id).or(facts.numa_node), ..facts }
    }
}

/// The NUMA node as the kernel tells it, without the milliseconds that NVML takes to start.
pub(super) fn node_of(bus_id: &str) -> Option<u32> {
    let path = format!("/sys/bus/pci/devices/{}/numa_node", bus_id.to_lowercase());
    // -1 where the host has but one, or does not say.
    std::fs::read_to_string(path).ok()?.trim().parse().ok()
}
