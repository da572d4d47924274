//! Every key that xl.cfg(5) of Xen 4.20 knows, those of our own (`upcall`, `accel`), and what becomes of each here.

/// What a key means to xlr.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// Read by the schema.
    Read,
    /// Says what is so anyway.
    Silent,
    /// Of use to HVM guests only.
    Hvm,
    /// Accepted with a warning: not done yet.
    Later,
    /// Accepted with a warning: has no meaning on KVM.
    Never,
    /// A device or a way to start that the guest would miss: an error unless empty.
    Missing,
}

const READ: &[&str] = &[
    "name",
    "type",
    "builder",
    "kernel",
    "ramdisk",
    "cmdline",
    "root",
    "extra",
    "memory",
    "maxmem",
    "vcpus",
    "maxvcpus",
    "uuid",
    "on_poweroff",
    "on_reboot",
    "on_crash",
    "on_watchdog",
    "on_soft_reset",
    "cpus",
    "acpi",
    "max_grant_frames",
    "max_grant_version",
    "event_channels",
    "max_event_channels",
    "disk",
    "vif",
    "channel",
    "bootloader",
    "bootloader_args",
    "firmware_override",
    "pvshim",
    "pvshim_path",
    "pvshim_cmdline",
    "pvshim_extra",
    "upcall",
    "tsc_mode",
    "accel",
    "hypercall_rewrite",
];

const SILENT: &[&str] = &[
    "pae",
    "nx",
    "apic",
    "hap",
    "vendor_device",
    "xen_platform_pci",
    "driver_domain",
    "xend_suspend_evtchn_compat",
    "nomigrate",
    "run_hotplug_scripts",
    "bootloader_restrict",
    "bootloader_user",
    "nographic",
];

const HVM: &[&str] = &[
    "serial",
    "boot",
    "firmware",
    "bios",
    "hdtype",
    "hpet",
    "device_model_version",
    "device_model",
    "device_model_override",
    "device_model_args",
    "device_model_args_pv",
    "device_model_args_hvm",
    "device_model_user",
    "dm_restrict",
    "bios_path_override",
    "vga",
    "videoram",
    "stdvga",
    "sdl",
    "opengl",
    "display",
    "xauthority",
    "vnc",
    "vnclisten",
    "vncdisplay",
    "vncunused",
    "vncpasswd",
    "vncviewer",
    "keymap",
    "spice",
    "spicehost",
    "spiceport",
    "spicetls_port",
    "spicedisable_ticketing",
    "spicepasswd",
    "spiceagent_mouse",
    "spicevdagent",
    "spice_clipboard_sharing",
    "spiceusbredirection",
    "spice_image_compression",
    "spice_streaming_video",
    "usb",
    "usbversion",
    "soundhw",
    "viridian",
    "timer_mode",
    "vpt_align",
    "ms_vm_genid",
    "smbios",
    "smbios_firmware",
    "acpi_firmware",
    "acpi_s3",
    "acpi_s4",
    "acpi_laptop_slate",
    "mmio_hole",
    "hvm_pirq",
    "gfx_passthru",
    "rdm",
    "rdm_mem_boundary",
    "altp2m",
    "altp2mhvm",
];

const LATER: &[&str] = &[
    "localtime",
    "rtc_timeoffset",
    "max_maptrack_frames",
    "cpus_soft",
    "cpu_weight",
    "cap",
    "vnuma",
    "vfb",
    "vkb",
    "vkb_device",
    "cpuid",
    "nestedhvm",
    "msr_relaxed",
    "mca_caps",
    "pci_permissive",
    "pci_msitranslate",
    "pci_seize",
    "pci_power_mgmt",
    "passthrough",
    "seclabel",
    "init_seclabel",
    "device_model_stubdomain_seclabel",
    "suppress_vmdesc",
];

const NEVER: &[&str] = &[
    "e820_host",
    "shadow_memory",
    "oos",
    "pool",
    "period",
    "slice",
    "latency",
    "extratime",
    "stubdomain_kernel",
    "stubdomain_ramdisk",
    "stubdomain_cmdline",
    "stubdomain_memory",
    "device_model_stubdomain_override",
    "vtpm",
    "pvcalls",
    "vdispl",
    "vsnd",
    "dtdev",
    "device_tree",
    "gic_version",
    "vuart",
    "sve",
    "tee",
    "nr_spis",
    "vpmu",
    "llc_colors",
    "arm_sci",
    "xenstore_quota",
    "vmtrace_buf_kb",
    "claim_mode",
    "nested_hvm",
];

const MISSING: &[&str] =
    &["vif2", "pci", "p9", "usbctrl", "usbdev", "usbdevice", "virtio", "ioports", "iomem", "irqs"];

const CLASSES: [(Class, &[&str]); 6] = [
    (Class::Read, READ),
    (Class::Silent, SILENT),
    (Class::Hvm, HVM),
    (Class::Later, LATER),
    (Class::Never, NEVER),
    (Class::Missing, MISSING),
];

/// What becomes of `key`; `None` when xl does not know it either.
pub fn class(key: &str) -> Option<Class> {
    CLASSES.iter().find(|(_, keys)| keys.contains(&key)).map(|&(class, _)| class)
}

/// All keys, the ones that are read first.
pub fn all() -> impl Iterator<Item = &'static str> {
    CLASSES.iter().flat_map(|(_, keys)| keys.iter().copied())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn no_key_stands_twice() {
        let mut seen = HashSet::new();
        for key in all() {
            assert!(seen.insert(key), "{key}");
        }
        assert!(seen.len() > 164);
    }
}
