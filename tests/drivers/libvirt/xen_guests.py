"""Definitions as libvirt's Xen driver writes them for guests of several kinds."""

from __future__ import annotations

PV_PYGRUB = """
<domain type='xen' id='7'>
  <name>mail</name><uuid>7c4f8a52-91be-4a1c-8f4e-0b4f4a2b7d01</uuid>
  <memory unit='KiB'>1048576</memory><currentMemory unit='KiB'>1048576</currentMemory>
  <vcpu placement='static' current='2'>4</vcpu>
  <bootloader>/usr/lib/xen-4.17/bin/pygrub</bootloader>
  <bootloader_args>-q</bootloader_args>
  <os><type arch='x86_64' machine='xenpv'>linux</type></os>
  <clock offset='utc' adjustment='reset'/>
  <on_poweroff>destroy</on_poweroff><on_reboot>restart</on_reboot><on_crash>restart</on_crash>
  <devices>
    <disk type='block' device='disk'><driver name='phy' type='raw'/><source dev='/dev/vg0/mail-root'/>
      <target dev='xvda' bus='xen'/></disk>
    <disk type='block' device='disk'><driver name='phy'/><source dev='/dev/vg0/mail-spool'/>
      <target dev='xvdb' bus='xen'/></disk>
    <controller type='xenbus' index='0'/>
    <interface type='bridge'><mac address='00:16:3e:1a:2b:3c'/><source bridge='xenbr0'/>
      <script path='vif-bridge'/><target dev='vif7.0'/></interface>
    <console type='pty' tty='/dev/pts/3'><source path='/dev/pts/3'/><target type='xen' port='0'/></console>
    <input type='mouse' bus='xen'/><input type='keyboard' bus='xen'/>
    <graphics type='vnc' port='5900' autoport='yes' listen='127.0.0.1'/>
    <video><model type='xen' vram='4096' heads='1' primary='yes'/></video>
    <memballoon model='xen'/>
  </devices>
</domain>
"""

PV_DIRECT_KERNEL = """
<domain type='xen' xmlns:xen='http://libvirt.org/schemas/domain/xen/1.0'>
  <name>build</name><uuid>7c4f8a52-91be-4a1c-8f4e-0b4f4a2b7d02</uuid>
  <memory unit='MiB'>512</memory><vcpu>1</vcpu>
  <os><type arch='x86_64' machine='xenpv'>linux</type>
    <kernel>/boot/vmlinuz-6.1.0-xen</kernel><initrd>/boot/initrd.img-6.1.0-xen</initrd>
    <cmdline>root=/dev/xvda ro console=hvc0</cmdline></os>
  <devices>
    <disk type='file' device='disk'><driver name='tap2' type='aio'/><source file='/var/lib/xen/images/build.img'/>
      <backenddomain name='storage'/><target dev='xvda' bus='xen'/></disk>
    <disk type='file' device='disk'><driver name='tap' type='vhd'/><source file='/var/lib/xen/images/cache.vhd'/>
      <target dev='xvdb' bus='xen'/></disk>
    <interface type='bridge'><mac address='00:16:3e:1a:2b:3d'/><source bridge='xenbr0'/><model type='netfront'/>
      <backenddomain name='net'/></interface>
  </devices>
  <xen:commandline><xen:arg value='nomigrate=1'/></xen:commandline>
</domain>
"""

HVM_WINDOWS = """
<domain type='xen' id='12'>
  <name>erp</name><uuid>7c4f8a52-91be-4a1c-8f4e-0b4f4a2b7d03</uuid>
  <memory unit='KiB'>4194304</memory><vcpu placement='static' cpuset='0-3'>4</vcpu>
  <os><type arch='x86_64' machine='xenfv'>hvm</type><loader type='rom'>/usr/lib/xen-4.17/boot/hvmloader</loader>
    <boot dev='hd'/><boot dev='cdrom'/></os>
  <features><acpi/><apic/><pae/><viridian/></features>
  <cpu mode='host-passthrough'><feature policy='disable' name='vmx'/></cpu>
  <clock offset='variable' adjustment='3600' basis='utc'><timer name='tsc' present='yes' mode='paravirt'/></clock>
  <devices>
    <emulator>/usr/lib/xen-4.17/bin/qemu-system-i386</emulator>
    <disk type='file' device='disk'><driver name='qemu' type='raw' cache='writeback'/>
      <source file='/var/lib/xen/images/erp.img'/><backingStore/><target dev='hda' bus='ide'/>
      <address type='drive' controller='0' bus='0' target='0' unit='0'/></disk>
    <disk type='file' device='cdrom'><driver name='qemu' type='raw'/><source file='/iso/win.iso'/>
      <target dev='hdc' bus='ide'/><readonly/></disk>
    <controller type='xenbus' index='0'/><controller type='ide' index='0'/>
    <controller type='usb' index='0' model='qusb2' ports='6'/>
    <interface type='bridge'><mac address='00:16:3E:AA:BB:CC'/><source bridge='xenbr1'/><script path='vif-bridge'/>
      <model type='e1000'/></interface>
    <interface type='bridge'><mac address='00:16:3e:aa:bb:cd'/><source bridge='xenbr2'/></interface>
    <serial type='pty'><source path='/dev/pts/4'/><target port='0'/></serial>
    <console type='pty'><target type='serial' port='0'/></console>
    <input type='tablet' bus='usb'/><input type='mouse' bus='ps2'/>
    <graphics type='vnc' port='-1' autoport='yes' listen='0.0.0.0'/>
    <video><model type='cirrus' vram='8192' heads='1' primary='yes'/></video>
    <hostdev mode='subsystem' type='pci' managed='yes'><driver name='xen'/>
      <source><address domain='0' bus='6' slot='0' function='0'/></source></hostdev>
    <memballoon model='xen'/>
  </devices>
</domain>
"""

HVM_UEFI = """
<domain type='xen'>
  <name>portal</name><uuid>7c4f8a52-91be-4a1c-8f4e-0b4f4a2b7d04</uuid>
  <memory unit='GiB'>2</memory><vcpu>2</vcpu>
  <os><type arch='x86_64' machine='xenfv'>hvm</type>
    <loader readonly='yes' type='pflash'>/usr/lib/xen-4.17/boot/ovmf.bin</loader></os>
  <features><acpi/><apic/><xen><e820_host state='on'/></xen></features>
  <devices>
    <disk type='file' device='disk'><driver name='qemu' type='qcow2'/><source file='/srv/portal.qcow2'/>
      <target dev='hda' bus='ide'/></disk>
    <disk type='file' device='disk'><driver name='qemu' type='raw'/><source file='/srv/portal-data.img'/>
      <target dev='xvdb' bus='xen'/></disk>
    <disk type='file' device='cdrom'><driver name='qemu' type='raw'/><target dev='xvdc' bus='xen'/><readonly/></disk>
    <interface type='network'><mac address='00:16:3e:00:00:04'/><source network='office'/><model type='netfront'/>
    </interface>
    <video><model type='vga' vram='16384' heads='1' primary='yes'/></video>
  </devices>
</domain>
"""

PVH = """
<domain type='xen'>
  <name>edge</name><uuid>7c4f8a52-91be-4a1c-8f4e-0b4f4a2b7d05</uuid>
  <memory unit='MiB'>256</memory><vcpu>1</vcpu>
  <os><type arch='x86_64' machine='xenpvh'>xenpvh</type><kernel>/usr/lib/grub-xen/grub-i386-xen_pvh.bin</kernel></os>
  <devices>
    <disk type='file' device='disk'><driver name='qemu'/><source file='/srv/edge.img'/><target dev='xvda' bus='xen'/>
    </disk>
    <console type='pty'><target type='xen' port='0'/></console>
  </devices>
</domain>
"""

PARTITION = """
<domain type='xen'>
  <name>old</name><uuid>7c4f8a52-91be-4a1c-8f4e-0b4f4a2b7d06</uuid>
  <memory unit='MiB'>256</memory><vcpu>1</vcpu><bootloader>pygrub</bootloader>
  <os><type arch='i686' machine='xenpv'>linux</type></os>
  <devices>
    <disk type='block' device='disk'><driver name='phy'/><source dev='/dev/vg0/old-root'/>
      <target dev='xvda1' bus='xen'/></disk>
    <disk type='block' device='disk'><driver name='phy'/><source dev='/dev/vg0/old-swap'/>
      <target dev='xvda2' bus='xen'/></disk>
  </devices>
</domain>
"""

GUESTS = {
    "pv with pygrub": PV_PYGRUB,
    "pv with a kernel of the host": PV_DIRECT_KERNEL,
    "hvm windows": HVM_WINDOWS,
    "hvm with uefi": HVM_UEFI,
    "pvh": PVH,
}
"""Those that can be rebuilt."""
