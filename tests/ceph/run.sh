#!/bin/sh
# Runs the S3 tests that matter against Ceph's RADOS gateway, which checks signatures and checksums.
#
#   tests/ceph/run.sh [pytest arguments]
#
# Needs Debian's packages: apt-get install ceph-mon ceph-osd ceph-mgr radosgw ceph-common, and root.
# Everything lives in a temporary folder and is removed at the end.
set -eu

here=$(cd "$(dirname "$0")/../.." && pwd)
work=$(mktemp -d /tmp/vecferry-ceph.XXXXXX)
chmod 755 "$work"
export CEPH_CONF="$work/ceph.conf"
port=${CEPH_S3_PORT:-7480}
pids=""

finish() {
    for pid in $pids; do kill "$pid" 2>/dev/null || true; done
    sleep 1
    for pid in $pids; do kill -9 "$pid" 2>/dev/null || true; done
    rm -rf "$work"
}
trap finish EXIT INT TERM

for tool in ceph-mon ceph-osd ceph-mgr radosgw radosgw-admin ceph-authtool monmaptool; do
    command -v "$tool" >/dev/null || { echo "$tool is missing: apt-get install ceph-mon ceph-osd ceph-mgr radosgw ceph-common" >&2; exit 2; }
done

fsid=$(cat /proc/sys/kernel/random/uuid)
mkdir -p "$work/mon" "$work/osd" "$work/mgr" "$work/run" "$work/log"
cat >"$CEPH_CONF" <<CONF
[global]
fsid = $fsid
mon host = [v2:127.0.0.1:13300,v1:127.0.0.1:16789]
mon initial members = a
auth cluster required = cephx
auth service required = cephx
auth client required = cephx
keyring = $work/keyring
run dir = $work/run
admin socket = $work/run/\$name.asok
pid file = $work/run/\$name.pid
log file = $work/log/\$name.log
osd pool default size = 1
osd pool default min size = 1
osd pool default pg num = 8
mon allow pool size one = true
mon warn on pool no redundancy = false
osd objectstore = memstore
memstore device bytes = 2147483648
osd crush chooseleaf type = 0
mon data = $work/mon
osd data = $work/osd
mgr data = $work/mgr
ms bind ipv6 = false
public addr = 127.0.0.1
[client.rgw.a]
rgw frontends = beast endpoint=127.0.0.1:$port
rgw data = $work/rgw
CONF

show_logs() { grep -h -i boot "$work/log/mon.a.log" | tail -n 5 >&2 || true; for log in "$work"/log/*.out; do echo "== $log"; tail -n 15 "$log"; done >&2; }
quiet() { "$@" >"$work/log/last" 2>&1 || { cat "$work/log/last" >&2; return 1; }; }

quiet ceph-authtool --create-keyring "$work/keyring" --gen-key -n mon. --cap mon 'allow *'
quiet ceph-authtool "$work/keyring" --gen-key -n client.admin --cap mon 'allow *' --cap osd 'allow *' --cap mgr 'allow *'
quiet ceph-authtool "$work/keyring" --gen-key -n mgr.a --cap mon 'allow profile mgr' --cap osd 'allow *'
quiet ceph-authtool "$work/keyring" --gen-key -n osd.0 --cap mon 'allow profile osd' --cap osd 'allow *' --cap mgr 'allow profile osd'
quiet ceph-authtool "$work/keyring" --gen-key -n client.rgw.a --cap mon 'allow rw' --cap osd 'allow rwx'
quiet monmaptool --create --clobber --fsid "$fsid" --addv a '[v2:127.0.0.1:13300,v1:127.0.0.1:16789]' "$work/monmap"
quiet ceph-mon --mkfs -i a --monmap "$work/monmap" --keyring "$work/keyring"
ceph-mon -f -i a >"$work/log/mon.out" 2>&1 & pids="$pids $!"
for name in client.admin mgr.a osd.0 client.rgw.a; do quiet timeout 60 ceph -n mon. auth import -i "$work/keyring" && break; done
ceph-mgr -f -i a >"$work/log/mgr.out" 2>&1 & pids="$pids $!"
uuid=$(cat /proc/sys/kernel/random/uuid)
quiet timeout 60 ceph osd new "$uuid" 0
quiet ceph-osd --mkfs -i 0 --osd-uuid "$uuid"
quiet timeout 60 ceph osd crush add osd.0 1.0 root=default host=localhost
ceph-osd -f -i 0 >"$work/log/osd.out" 2>&1 & pids="$pids $!"
radosgw -f -n client.rgw.a >"$work/log/rgw.out" 2>&1 & pids="$pids $!"

tries=0
until python -c "import socket; socket.create_connection(('127.0.0.1', $port), 1)" 2>/dev/null; do
    tries=$((tries + 1))
    [ $tries -lt ${CEPH_WAIT:-120} ] || { echo "the gateway did not start" >&2; show_logs; exit 1; }
    sleep 1
done
access=vecferrytest
secret=$(head -c 24 /dev/urandom | base64 | tr '+/' 'xy')
quiet timeout 60 radosgw-admin user create --uid=test --display-name=test --access-key="$access" --secret-key="$secret"

echo "Ceph $(radosgw --version | cut -d' ' -f3) listens on port $port"
cd "$here"
VECFERRY_TEST_S3="http://127.0.0.1:$port" AWS_ACCESS_KEY_ID=$access AWS_SECRET_ACCESS_KEY=$secret \
    python -m pytest -q tests/snapshots/test_ceph.py "$@"
