#!/bin/bash
# Build etcd, kube-apiserver, kube-controller-manager and kube-scheduler into a folder, from Debian bookworm's packages
# alone (Kubernetes 1.20.2, Go 1.19). Nothing is installed; about ten minutes on two cores, 6 GB of temporary disk.
#
#   tests/helm/cluster/build-control-plane.sh DIR
#
# Newer binaries do as well: put these four of any release into a folder and set KUBEBUILDER_ASSETS to it.
set -euo pipefail

[ $# = 1 ] || { echo "usage: $0 DIR" >&2; exit 2; }
for tool in apt-get dpkg dpkg-source make gcc; do
    command -v "$tool" >/dev/null || { echo "error: $tool is missing: this builds on Debian (dpkg-dev, build-essential)" >&2; exit 2; }
done
[ "$(dpkg --print-architecture)" = amd64 ] || { echo "error: written for amd64" >&2; exit 2; }

mkdir -p "$1"
out=$(realpath "$1")
work=$(mktemp -d)
trap 'chmod -R u+w "$work"; rm -rf "$work"' EXIT

# apt with lists and caches of its own, so that the system's stay as they are
mkdir -p "$work"/{state/lists/partial,cache/archives/partial,sources,debs,root,bin,home}
touch "$work/state/status"
sed 's/^Types: deb$/Types: deb deb-src/' /etc/apt/sources.list.d/debian.sources > "$work/sources/debian.sources"
apt() {
    apt-get -qq -o Dir::Etc::SourceList=/dev/null -o "Dir::Etc::SourceParts=$work/sources" -o "Dir::State=$work/state" \
        -o "Dir::State::status=$work/state/status" -o "Dir::Cache=$work/cache" -o APT::Sandbox::User=root "$@"
}

echo "[1/3] packages"
cd "$work/debs"
apt update
apt download golang-1.19-go golang-1.19-src etcd-server rsync libpopt0 golang-github-modern-go-reflect2-dev
for package in *.deb; do dpkg -x "$package" "$work/root"; done
apt source --download-only kubernetes
dpkg-source --no-check -x kubernetes_*.dsc "$work/kubernetes" >/dev/null

echo "[2/3] compile"
cd "$work/kubernetes"
# the copy that Kubernetes 1.20 carries crashes when compiled with Go 1.18 or newer
reflect2=vendor/github.com/modern-go/reflect2
rm "$reflect2"/*.go "$reflect2"/*.s
cp "$work"/root/usr/share/gocode/src/github.com/modern-go/reflect2/*.{go,s} "$reflect2/"
mkdir -p .go/src/k8s.io
ln -s ../../.. .go/src/k8s.io/kubernetes
cat > "$work/bin/rsync" <<RSYNC
#!/bin/sh
LD_LIBRARY_PATH=$work/root/usr/lib/x86_64-linux-gnu exec $work/root/usr/bin/rsync "\$@"
RSYNC
chmod +x "$work/bin/rsync"
export GOROOT=$work/root/usr/lib/go-1.19 GOPATH=$PWD/.go GOCACHE=$work/cache/go GOPROXY=off CGO_ENABLED=0 HOME=$work/home
export PATH=$GOROOT/bin:$work/bin:$PATH
export KUBE_GIT_VERSION=v1.20.2 KUBE_GIT_MAJOR=1 KUBE_GIT_MINOR=20 KUBE_GIT_TREE_STATE=archive KUBE_GIT_COMMIT=debian
make WHAT="cmd/kube-apiserver cmd/kube-controller-manager cmd/kube-scheduler"

echo "[3/3] copy to $out"
cp _output/local/bin/linux/amd64/kube-{apiserver,controller-manager,scheduler} "$work/root/usr/bin/etcd" "$out/"
