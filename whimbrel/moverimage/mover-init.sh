#!/bin/busybox sh
# All that runs in a mover server: serves the disks that its config drive names by NBD over TLS, and tells on the serial
# console by which certificate it is known. The key is made here at every boot and leaves this machine never.
# The config drive's user data is lines of a key and values:
#   address A.B.C.D/N    gateway A.B.C.D    mtu N    port N    name NAME (in the certificate)
#   disk VOLUME-ID SIZE-BYTES read|write (exported under the volume's id; a longer disk is cut to the size)
#   ca LINE (of the certificate that signs clients, PEM)
/bin/busybox mount -t proc proc /proc
/bin/busybox mount -t sysfs sys /sys
/bin/busybox mount -t devtmpfs dev /dev
/bin/busybox mount -t tmpfs tmp /tmp
/bin/busybox --install -s /bin
export PATH=/bin:/usr/bin

say() { echo "WHIMBREL-MOVER $*" >/dev/ttyS0; }
halt() { say "FAILED $*"; while :; do sleep 3600; done; }
load() {
    while read -r module options; do insmod "/lib/modules/$module" $options 2>/dev/null; done <"/lib/modules/$1.order"
}
load early

tries=0
until drive=$(findfs LABEL=config-2 2>/dev/null); do
    tries=$((tries + 1)); [ $tries -lt 300 ] || halt "no config drive: make the server with one"
    usleep 100000
done
mount -o ro -t iso9660 "$drive" /config 2>/dev/null || mount -o ro -t vfat "$drive" /config || halt "cannot read $drive"
settings=/config/openstack/latest/user_data
[ -r $settings ] || halt "the config drive has no user data"

port=10809 name=whimbrel-mover gateway= mtu= address=
: >/tmp/disks
while read -r key value; do
    case $key in
        address) address=$value ;;
        gateway) gateway=$value ;;
        mtu) mtu=$value ;;
        port) port=$value ;;
        name) name=$value ;;
        disk) echo "$value" >>/tmp/disks ;;
        ca) echo "$value" >>/tls/ca-cert.pem ;;
    esac
done <$settings

load late
ip link set lo up
nic=$(cd /sys/class/net && ls -d e* 2>/dev/null | head -n 1)
[ -n "$nic" ] && [ -n "$address" ] || halt "no network card, or no address in the user data"
[ -n "$mtu" ] && ip link set "$nic" mtu "$mtu"
ip link set "$nic" up
ip address add "$address" dev "$nic"
[ -n "$gateway" ] && ip route add default via "$gateway"
arping -q -c 2 -U -I "$nic" "${address%/*}" & # who knew this address elsewhere learns at once

# The dates are wide: the clock of a fresh server need not be right, and the certificate is trusted as it is.
cat >/tmp/template <<END
cn = "$name"
dns_name = "$name"
ca
cert_signing_key
signing_key
tls_www_server
activation_date = "2020-01-01 00:00:00 UTC"
expiration_days = -1
END
umask 077
certtool --generate-privkey --key-type=ecdsa --curve=secp256r1 --outfile /tls/server-key.pem 2>/tmp/errors &&
    certtool --generate-self-signed --load-privkey /tls/server-key.pem --template /tmp/template \
        --outfile /tls/server-cert.pem 2>>/tmp/errors || halt "certificate: $(tail -n 1 /tmp/errors)"

# disk_of VOLUME-ID: the device whose serial number it is; virtio-blk keeps 20 characters of it
disk_of() {
    for block in /sys/block/sd* /sys/block/vd*; do
        [ -e "$block" ] || continue
        serial=$(tail -c +5 "$block/device/vpd_pg80" 2>/dev/null | tr -d '\0 ')
        [ -n "$serial" ] || serial=$(cat "$block/serial" 2>/dev/null)
        case $serial in "$1" | "$(echo "$1" | cut -c 1-20)") device=/dev/${block##*/}; return 0 ;; esac
    done
    return 1
}

set --
number=0
while read -r volume size mode; do
    tries=0
    until disk_of "$volume"; do
        tries=$((tries + 1)); [ $tries -lt 600 ] || halt "volume $volume is not attached"
        usleep 100000
    done
    only=off writable=on
    [ "$mode" = write ] || only=on writable=off
    file="driver=host_device,node-name=file$number,filename=$device,cache.direct=on,discard=unmap,read-only=$only"
    set -- "$@" --blockdev "$file" \
        --blockdev "driver=raw,node-name=disk$number,file=file$number,size=$size,discard=unmap,read-only=$only" \
        --export "type=nbd,id=export$number,node-name=disk$number,name=$volume,writable=$writable"
    number=$((number + 1))
done </tmp/disks

serve() {
    while :; do
        qemu-storage-daemon --object tls-creds-x509,id=tls,endpoint=server,dir=/tls,verify-peer=yes,sanity-check=off \
            --nbd-server "addr.type=inet,addr.host=0.0.0.0,addr.port=$port,tls-creds=tls,max-connections=0" \
            --pidfile /tmp/serving "$@" 2>/tmp/errors
        rm -f /tmp/serving
        say "ENDED $(tail -n 1 /tmp/errors)"
        sleep 1
    done
}
serve "$@" &
until [ -e /tmp/serving ]; do usleep 50000; done
while read -r line; do say "CERT $line"; done </tls/server-cert.pem
say "READY disks=$number port=$port"
while :; do sleep 3600; done
