"""What a Linux with systemd reads when it boots: names only. Made with the traces for tuning (docs/streaming.md)."""

from __future__ import annotations

import re
from typing import Final

LIBRARY_DIRECTORIES: Final = (
    *("/usr/lib/x86_64-linux-gnu", "/usr/lib/aarch64-linux-gnu", "/usr/lib64", "/usr/lib"),
    *("/usr/lib/x86_64-linux-gnu/systemd", "/usr/lib/systemd", "/lib/x86_64-linux-gnu", "/lib64", "/lib"),
)
UNIT_DIRECTORIES: Final = ("/etc/systemd/system", "/usr/lib/systemd/system", "/lib/systemd/system")
SHELLS: Final = ("sh", "dash", "bash")
MACHINES: Final = ("x86_64", "aarch64")
EARLY: Final = ("sh", "mount", "kmod", "udevadm", "systemctl", "journalctl", "systemd-tmpfiles", "systemd-sysusers")
PROGRAMS: Final = ("login", "agetty", "fsck", "e2fsck", "fsck.ext4", "modprobe", "sulogin", "bash")
CONFIGURATION: Final = (
    *("tmpfiles.d", "sysusers.d", "sysctl.d", "modules-load.d", "modprobe.d", "binfmt.d", "pam.d", "dbus-1", "default"),
    *("security", "ssl/openssl.cnf", "network", "NetworkManager", "netplan", "cloud"),
)
WALKED: Final = (
    *("/home", "/root", "/tmp", "/var/tmp", "/var/log"),  # noqa: S108 - the guest's
    *("/var/cache", "/var/spool", "/var/lib", "/var/lib/systemd"),
    *("/usr/lib/modules", "/boot", "/opt", "/srv", "/mnt", "/media"),
)
"""Directories that are gone through while the system sets itself up."""
LOADED_LIBRARIES: Final = r"^lib(nss_|cryptsetup|bpf|ip4tc|kmod|seccomp|audit|pwquality|qrencode|tss2-|cap-ng|gcc_s)"
"""Opened by name at run time: no program is linked with them."""
PYTHON: Final = re.compile(r"/usr/bin/(python3\.\d+)$")
PYTHON_PARTS: Final = (
    *("", "encodings", "collections", "importlib", "importlib/metadata", "re", "json", "logging", "concurrent/futures"),
    *("asyncio", "urllib", "email", "http"),
)
PERL: Final = re.compile(r"/usr/bin/perl[\d.]*$")
MODULES: Final = frozenset(
    re.findall(
        r"\w+",
        """
    autofs4 configfs loop dm_mod fuse efi_pstore pstore efivarfs ip_tables ip6_tables x_tables iptable_filter nf_tables
    nf_conntrack nf_defrag_ipv4 nf_defrag_ipv6 qemu_fw_cfg drm drm_kms_helper virtio_gpu bochs cirrus vmwgfx ttm sr_mod
    cdrom psmouse evdev button serio_raw pcspkr joydev sg virtio_rng rng_core virtio_balloon virtio_console virtio_net
    net_failover failover virtio_scsi virtio_blk crc32_pclmul crc32c_intel crct10dif_pclmul crc32c_generic
    ghash_clmulni_intel aesni_intel crypto_simd cryptd sha512_ssse3 sha256_ssse3 sha1_ssse3 polyval_clmulni
    intel_rapl_msr intel_rapl_common kvm kvm_intel kvm_amd irqbypass ccp binfmt_misc parport parport_pc ppdev floppy
    i2c_piix4 i2c_i801 i2c_smbus lpc_ich iTCO_wdt watchdog ahci libahci libata scsi_mod hid hid_generic usbhid usbcore
    xhci_hcd tls vsock vmw_vsock_virtio_transport vmw_balloon vmw_vmci hv_utils hv_balloon bridge stp llc overlay
    br_netfilter ext4 xfs jbd2 mbcache crc16 fat vfat nls_ascii nls_cp437 nls_iso8859_1 isofs af_packet msr tun
    dmi_sysfs rapl dm_multipath scsi_dh_alua rtc_cmos mac_hid input_leds ramoops reed_solomon zram zsmalloc lz4_compress
    sunrpc
    """,
    )
)
"""Kernel modules that guests load, where their kernel has them as modules."""
