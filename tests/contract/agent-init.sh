#!/bin/busybox sh
# A guest that does nothing but answer the QEMU guest agent's protocol on its virtio port, a few commands of it.
# Kernel command line: agent.host=NAME; agent.mute=1 takes the requests and stays silent.
/bin/busybox mount -t proc proc /proc
/bin/busybox mount -t sysfs sys /sys
/bin/busybox mount -t devtmpfs dev /dev
/bin/busybox --install -s /bin
export PATH=/bin

host=unnamed mute=0 state=thawed
for word in $(cat /proc/cmdline); do
    case $word in agent.*=*) eval "${word#agent.}" ;; esac
done
while read -r module; do insmod "/lib/$module"; done </lib/agent.order

device=
while [ -z "$device" ]; do
    for port in /sys/class/virtio-ports/*; do
        [ -r "$port/name" ] && read -r name <"$port/name" && [ "$name" = org.qemu.guest_agent.0 ] &&
            device=/dev/${port##*/}
    done
    usleep 50000
done
exec 3<>"$device"
echo "AGENT UP $device" >/dev/ttyS0

while :; do
    read -r line <&3 || { usleep 50000; continue; }
    [ "$mute" = 1 ] && continue
    case $line in
        *guest-sync*)
            id=${line##*id\":}; id=${id%%\}*}
            case $line in *delimited*) printf '\377' >&3 ;; esac
            printf '{"return": %s}\n' "$id" >&3 ;;
        *guest-ping*) printf '{"return": {}}\n' >&3 ;;
        *guest-get-host-name*) printf '{"return": {"host-name": "%s"}}\n' "$host" >&3 ;;
        *guest-get-osinfo*) printf '{"return": {"id": "lab", "name": "Lab", "pretty-name": "Lab GNU/Busybox 1"}}\n' >&3 ;;
        *guest-network-get-interfaces*)
            printf '{"return": [{"name": "lo", "ip-addresses": [{"ip-address": "127.0.0.1"}]}, ' >&3
            printf '{"name": "eth0", "ip-addresses": [{"ip-address": "192.0.2.7"}, {"ip-address": "2001:db8::7"}]}]}\n' >&3 ;;
        *guest-fsfreeze-status*) printf '{"return": "%s"}\n' "$state" >&3 ;;
        *guest-fsfreeze-freeze*) state=frozen; printf '{"return": 1}\n' >&3 ;;
        *guest-fsfreeze-thaw*) state=thawed; printf '{"return": 1}\n' >&3 ;;
        *) printf '{"error": {"class": "CommandNotFound", "desc": "no such command"}}\n' >&3 ;;
    esac
    echo "AGENT $line" >/dev/ttyS0
done
