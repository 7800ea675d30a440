#!/bin/busybox sh
# First and only process tree of a lab guest: writes numbered, checksummed records to its disks.
# Kernel command line: wb.rate= records/s (0: none), wb.records= slots, wb.dirty_kib= random KiB/s,
# wb.reads= blocks read from all over the disk before the first record (an application's start), the same in every boot,
# wb.hot_mib= area for these, wb.print= every k-th record on the console, wb.ignore_acpi=1,
# wb.base= MiB left alone at the start of each disk (a boot loader), wb.net=A.B.C: network A.B.C.0/24, gateway .1;
# the NIC's address ends in the number its MAC ends in. With wb.net commands are taken on TCP port 7000 as well.
# Disk layout from base on: block 0 holds the boot counter; records of 4 KiB from 1 MiB on, as a ring; the hot area.
/bin/busybox mount -t proc proc /proc
/bin/busybox mount -t sysfs sys /sys
/bin/busybox mount -t devtmpfs dev /dev
/bin/busybox mount -t tmpfs tmp /tmp
/bin/busybox --install -s /bin
export PATH=/bin

rate=5 records=2048 dirty_kib=0 hot_mib=8 print=1 ignore_acpi=0 scsi=0 base=0 net= reads=0
for word in $(cat /proc/cmdline); do
    case $word in wb.net=*[!0-9.]*) ;; wb.net=*) net=${word#wb.net=} ;; wb.*=*[!0-9]*) ;; wb.*=*) eval "${word#wb.}" ;; esac
done

# Packets that leave with their checksum still to be made are lost in a switch that runs in user space.
load() {
    while read -r module; do
        options=; [ -n "$net" ] && [ "$module" = virtio_net.ko ] && options="csum=0 gso=0"
        insmod "/lib/$module" $options 2>/dev/null
    done <"/lib/$1.order"
}
load disk
[ "$scsi" = 1 ] && load scsi
load button

centis() { read -r up _ </proc/uptime; now=$(( ${up%.*} * 100 + 1${up#*.} - 100 )); }
say() { echo "WB $*" >/dev/ttyS0; }

tries=0 disks=
while [ $tries -lt 100 ]; do
    disks=$(cd /sys/block && ls -d [vs]d? 2>/dev/null)
    [ -n "$disks" ] && break
    tries=$((tries + 1)); usleep 20000
done
set -- $disks; first=$1
[ -n "$first" ] || { say "NODISK"; rate=0 dirty_kib=0; }

# put FILE DISK BLOCK: one 4 KiB block, past the guest's cache and flushed; a failure stops all writing
put() {
    dd if="$1" of="/dev/$2" bs=4k count=1 seek="$3" oflag=direct conv=notrunc,fsync 2>/dev/null && return 0
    : >/tmp/stop; say "IOERR disk=$2 block=$3"; return 1
}
line() { dd if="/dev/$1" bs=512 skip="$2" count=1 iflag=direct 2>/dev/null | tr -d '\0' | head -n 1; }
field() { value=; for pair in $2; do case $pair in "$1"=*) value=${pair#*=} ;; esac; done; }
number_at() { field n "$(line "$first" $(((base + 1) * 2048 + $1 * 8)))"; number=${value:--1}; }

# Records are written in order, so the last one is found by bisection: slot i holds slot 0's number + i up to it.
find_last() {
    number_at 0; oldest=$number
    [ "$oldest" -ge 0 ] || { last=-1; return; }
    low=0 high=$((records - 1))
    while [ $low -lt $high ]; do
        middle=$(( (low + high + 1) / 2 )); number_at $middle
        if [ "$number" = $((oldest + middle)) ]; then low=$middle; else high=$((middle - 1)); fi
    done
    last=$((oldest + low))
}

field boots "$(line "$first" $((base * 2048)))"; boot=$(( ${value:-0} + 1 ))
find_last; resumed=$last
printf '%-4095s\n' "WBDISK1 boots=$boot records=$records" >/tmp/head
for disk in $disks; do put /tmp/head "$disk" $((base * 256)); done
echo "$last" >/tmp/last

# What an application reads when it starts: blocks in clusters all over the disk, in an order of its own.
warm_up() {
    sectors=$(cat "/sys/block/$first/size"); blocks=$((sectors / 8)) seed=4711 left=$reads
    while [ "$left" -gt 0 ]; do
        seed=$(( (seed * 1103515245 + 12345) % 2147483648 ))
        place=$(( seed / 64 % (blocks - 64) ))
        dd if="/dev/$first" of=/dev/null bs=4k count=8 skip=$place iflag=direct 2>/dev/null || say "IOERR disk=$first read=$place"
        left=$((left - 8))
    done
}
[ "$reads" -gt 0 ] && [ -n "$first" ] && warm_up

# record KIND: the same line in every 512-byte sector, so that a torn write shows; the sum in the last sector
record() {
    n=$((last + 1))
    read -r up _ </proc/uptime; read -r rtc </sys/class/rtc/rtc0/since_epoch
    head="WBREC1 kind=$1 boot=$boot n=$n up=$up rtc=$rtc"
    printf '%-511s\n%-511s\n%-511s\n%-511s\n%-511s\n%-511s\n%-511s\n' \
        "$head" "$head" "$head" "$head" "$head" "$head" "$head" >/tmp/rec
    set -- $(md5sum /tmp/rec)
    printf '%-474s md5=%s\n' "$head" "$1" >>/tmp/rec
    for disk in $disks; do put /tmp/rec "$disk" $(((base + 1) * 256 + n % records)) || return 1; done
    last=$n; echo "$last" >/tmp/last
    [ $((n % print)) = 0 ] && echo "$head" >/dev/ttyS0
    return 0
}

write_records() {
    centis; next=$now
    while :; do
        if [ -e /tmp/stop ]; then
            : >/tmp/idle.records
            while [ -e /tmp/stop ]; do usleep 20000; done
            rm -f /tmp/idle.records; read -r last </tmp/last; centis; next=$now
        fi
        read -r rate </tmp/rate
        if [ "$rate" = 0 ]; then usleep 100000; continue; fi
        record run || continue
        centis; next=$((next + 100 / rate))
        if [ $next -gt $now ]; then usleep $(((next - now) * 10000)); elif [ $((now - next)) -gt 100 ]; then next=$now; fi
    done
}

write_hot() {
    origin=$(( base + (1024 + records * 4 + 1023) / 1024 )) # MiB
    seed=$((boot * 7919))
    while :; do
        if [ -e /tmp/stop ]; then
            : >/tmp/idle.hot
            while [ -e /tmp/stop ]; do usleep 20000; done
            rm -f /tmp/idle.hot
        fi
        read -r dirty_kib </tmp/dirty
        if [ "$dirty_kib" = 0 ]; then usleep 100000; continue; fi
        kib=64; [ "$dirty_kib" -gt 1024 ] && kib=256; [ "$dirty_kib" -gt 8192 ] && kib=1024
        centis; begin=$now count=$(( (dirty_kib + kib - 1) / kib ))
        while [ $count -gt 0 ] && [ ! -e /tmp/stop ]; do
            seed=$(( (seed * 1103515245 + 12345) % 2147483648 ))
            place=$(( origin * 1024 / kib + seed / 64 % (hot_mib * 1024 / kib) ))
            dd if=/dev/urandom of="/dev/$first" bs=${kib}k count=1 seek=$place oflag=direct conv=notrunc 2>/dev/null ||
                { : >/tmp/stop; say "IOERR disk=$first hot=$place"; }
            count=$((count - 1))
        done
        while centis; [ $((now - begin)) -lt 100 ] && [ ! -e /tmp/stop ]; do usleep 50000; done
    done
}

quiet() { : >/tmp/stop; until [ -e /tmp/idle.records ] && [ -e /tmp/idle.hot ]; do usleep 10000; done; }

# A whole power-off: writers at rest, one last record that says so, caches out, lights off.
leave() {
    quiet; read -r last </tmp/last
    [ -n "$first" ] && record final
    sync; say "STOPPED boot=$boot last=$last"; poweroff -f
}

watch_button() {
    for event in /sys/class/input/event*; do
        read -r name <"$event/device/name"
        [ "$name" = "Power Button" ] || continue
        while :; do
            head -c 24 "/dev/input/${event##*/}" >/dev/null || return
            if [ "$ignore_acpi" = 1 ]; then say "BUTTON ignored"; else say "BUTTON"; leave; fi
        done
    done
    say "NOBUTTON"
}

hash_disk() { # DISK [OFFSET LENGTH], multiples of 4096
    if [ -z "$3" ]; then dd if="/dev/$1" bs=1M iflag=direct 2>/dev/null
    else dd if="/dev/$1" bs=4k skip=$(($2 / 4096)) count=$(($3 / 4096)) iflag=direct 2>/dev/null; fi | sha256sum | cut -d' ' -f1
}

answer() { # COMMAND ARGUMENTS -> reply
    case $1 in
        ping) reply=pong ;;
        hash) if [ -b "/dev/$2" ]; then reply=$(hash_disk "$2" "$3" "$4"); else reply="ERROR no disk $2"; fi ;;
        stop-writing) quiet; sync; read -r reply </tmp/last ;;
        start-writing) rm -f /tmp/stop; while [ -e /tmp/idle.records ] || [ -e /tmp/idle.hot ]; do usleep 10000; done; reply=ok ;;
        boot-count) reply=$boot ;;
        last-record) read -r reply </tmp/last ;;
        sync) sync; reply=ok ;;
        rate) echo "$(($2 + 0))" >/tmp/rate; reply=ok ;;
        dirty-kib) echo "$(($2 + 0))" >/tmp/dirty; reply=ok ;;
        disks) reply=$(echo $disks) ;;
        macs) reply=$(cat /sys/class/net/e*/address 2>/dev/null | tr '\n' ' ') ;;
        poweroff) leave ;;
        *) reply="ERROR unknown command $1" ;;
    esac
}

echo "$rate" >/tmp/rate; echo "$dirty_kib" >/tmp/dirty
centis
say "UP boot=$boot up=$up resumed=$resumed disks=$(echo $disks)"
write_records &
write_hot &
watch_button &
load net
for nic in /sys/class/net/e*; do
    [ -e "$nic/address" ] || continue
    ip link set "${nic##*/}" up; read -r mac <"$nic/address"; address=
    if [ -n "$net" ]; then
        address=$net.$((0x${mac##*:}))
        ip address add "$address/24" dev "${nic##*/}"; ip route add default via "$net.1" 2>/dev/null
        arping -q -c 2 -U -I "${nic##*/}" "$address" & # a switch that knew this MAC elsewhere learns at once
    fi
    say "NIC ${nic##*/} mac=$mac${address:+ ip=$address}"
done

# One process answers for all connections; each connection is a relay that hands it lines and waits for the reply.
serve_network() {
    mkfifo /tmp/asked; exec 4<>/tmp/asked
    while read -r from token command one two three <&4; do
        answer "$command" "$one" "$two" "$three"
        echo "$token $reply" >"/tmp/reply.$from"
    done
}
if [ -n "$net" ]; then
    printf '%s\n' '#!/bin/sh' 'mkfifo /tmp/reply.$$' \
        'while read -r line; do echo "$$ $line" >/tmp/asked; head -n 1 </tmp/reply.$$; done; rm -f /tmp/reply.$$' >/tmp/relay
    chmod 755 /tmp/relay
    serve_network &
    nc -ll -p 7000 -e /tmp/relay &
fi

# Commands: "<token> <command> [arguments]" a line on the second serial port; answers start with the token.
stty -F /dev/ttyS1 raw -echo 2>/dev/null
exec 3<>/dev/ttyS1
while :; do
    read -r token command one two three <&3 || { usleep 100000; continue; }
    [ -n "$command" ] || continue
    answer "$command" "$one" "$two" "$three"
    echo "$token $reply" >&3
done
