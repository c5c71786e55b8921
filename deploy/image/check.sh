#!/usr/bin/env bash
# Builds the Dockerfile's CPU stages without a Docker daemon and without Docker Hub, and works images in them.
#
# Needs root, a Debian mirror, a package registry and Go's module proxy. buildah, crun and debootstrap are installed by
# apt-get where they are missing. The base images are stand-ins made here from the same parts: Debian's Python 3.11 in
# place of python:3.11-slim-bookworm, Beam's boot program built from its Go module (the newest stack's, in the oldest one's
# place too, whose worker pool is not tried). The base image of Flex Templates
# is to be had nowhere else, so that the launcher of the stage `dataflow` is an empty file.
#
# The package registry and its certificate come from pip's own settings, and from PIP_CERT and SSL_CERT_FILE.
# Usage: deploy/image/check.sh [STAGE...]: worker (the default), rootless, dataflow, tfio.
# Exit code: 0 all holds, 1 something does not, 77 this machine cannot build images (the last line says why).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

say() { echo "==> $*"; }

fail() {
    echo "image check: $*" >&2
    exit 1
}

skip() {
    echo "image check: $*"
    exit 77
}

# ---- what it takes
((EUID == 0)) || skip "only root can build images here"
if ! { type -P buildah && type -P crun && type -P debootstrap; } > /dev/null; then
    type -P apt-get > /dev/null || skip "there is no apt-get to install buildah, crun and debootstrap with"
    say "apt-get install buildah crun debootstrap"
    { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -qq --no-install-recommends \
        buildah crun debootstrap; } > /dev/null 2>&1 || skip "apt-get cannot install buildah, crun and debootstrap"
fi
type -P go > /dev/null || skip "there is no go to build Beam's boot program with"

work=$(mktemp -d)
python=$(type -P "${PYTHON:-python3}")
export BUILDAH_ISOLATION=chroot
pool=
storage=(--root "$work/storage" --runroot "$work/run")

cleanup() {
    [[ -z $pool ]] || kill -- "-$pool" 2> /dev/null || true
    buildah "${storage[@]}" rm --all > /dev/null 2>&1 || true
    buildah "${storage[@]}" rmi --all --force > /dev/null 2>&1 || true
    rm -rf "$work" || true
}
trap cleanup EXIT

# A layer of overlay costs what it adds, one of vfs a copy of everything below it.
export STORAGE_DRIVER=overlay
if ! container=$(buildah "${storage[@]}" from scratch 2> /dev/null) \
    || ! buildah "${storage[@]}" mount "$container" > /dev/null 2>&1; then
    export STORAGE_DRIVER=vfs
    rm -rf "$work/storage" "$work/run"
    container=$(buildah "${storage[@]}" from scratch) || skip "buildah cannot make a container here"
fi
buildah "${storage[@]}" rm "$container" > /dev/null
say "buildah with the storage driver $STORAGE_DRIVER"

# ---- the stand-ins for the base images
bases=$(awk '/^FROM .*:/ && !seen[$2]++ {print $2}' Dockerfile)
base_python=$(grep '^python:' <<< "$bases")
base_launcher=$(grep 'template-launcher' <<< "$bases")
mapfile -t base_beams < <(grep 'beam_python' <<< "$bases")

say "$base_python from debootstrap"
debootstrap --variant=minbase --include=python3,python3-venv,ca-certificates "${base_python##*-}" "$work/python" \
    > "$work/log" 2>&1 || skip "debootstrap cannot fetch Debian: $(tail -n 1 "$work/log")"
ln -s python3 "$work/python/usr/bin/python"
rm -rf "$work"/python/var/cache/apt/archives/*.deb

beam=${base_beams[0]##*:}
say "Beam's boot program $beam from its Go module"
GOBIN=$work/bin go install "github.com/apache/beam/sdks/v2/python/container@v$beam" > "$work/log" 2>&1 \
    || skip "go cannot build Beam's boot program: $(tail -n 1 "$work/log")"
mkdir -p "$work/beam/opt/apache/beam" "$work/launcher/opt/google/dataflow"
mv "$work/bin/container" "$work/beam/opt/apache/beam/boot"
printf '#!/bin/sh\n' > "$work/launcher/opt/google/dataflow/python_template_launcher"
chmod +x "$work/launcher/opt/google/dataflow/python_template_launcher"

commit() { # FOLDER NAME: the folder's content as an image
    local container
    container=$(buildah "${storage[@]}" from scratch)
    buildah "${storage[@]}" add --quiet "$container" "$work/$1" / > /dev/null
    buildah "${storage[@]}" commit --quiet --rm "$container" "$2" > /dev/null
    rm -rf "${work:?}/$1"
}
commit python "docker.io/library/$base_python"
commit beam "docker.io/${base_beams[0]}"
for base in "${base_beams[@]:1}"; do
    buildah "${storage[@]}" tag "docker.io/${base_beams[0]}" "docker.io/$base"
done
commit launcher "$base_launcher"

# ---- build: pip's settings and certificate are mounted, so that none of them is in the image
certificate=${PIP_CERT:-${SSL_CERT_FILE:-}}
"$python" -m pip config list | "$python" -c '
import ast, sys
passed_on = {"index-url", "extra-index-url", "trusted-host", "proxy", "default-timeout", "timeout", "retries", "cert"}
found = (line.strip().partition("=") for line in sys.stdin)
settings = {name.rpartition(".")[2]: ast.literal_eval(value) for name, _, value in found}
print("[global]")
for option in sorted(passed_on & settings.keys()):
    print(option, "=", "\n    ".join(settings[option].split()))
' > "$work/pip.conf"
mounts=(--volume "$work/pip.conf:/etc/pip.conf:ro")
[[ -z $certificate ]] || mounts+=(--volume "$certificate:$certificate:ro")

build() { # STAGE [ARGUMENT...]
    local start=$SECONDS
    say "buildah bud --target $*"
    buildah "${storage[@]}" bud --quiet --layers --pull=never "${mounts[@]}" --target "$@" --tag "imagebeam:$1" . \
        > "$work/log" 2>&1 || { tail -n 40 "$work/log" >&2; fail "the stage $1 cannot be built"; }
    echo "built in $((SECONDS - start)) s"
}

container=
inside() { # COMMAND...: run in the current container; the folder $work/shared is at the same path on both sides
    buildah "${storage[@]}" run --hostname localhost --user "$user" --volume "$work/shared:$work/shared" "$container" -- "$@"
}

# ---- run
mkdir -m 777 "$work/shared"
mkdir "$work/shared/in"
"$python" - "$work/shared/in" << 'PYTHON'
import pathlib, struct, sys, zlib

def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

for index in range(24):  # PNGs of 32 x 32 pixels, each of its own colour
    rows = (b"\0" + bytes([index * 10, 255 - index * 10, index]) * 32) * 32
    header = struct.pack(">IIBBBBB", 32, 32, 8, 2, 0, 0, 0)
    png = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    pathlib.Path(sys.argv[1], f"{index:02}.png").write_bytes(png)
PYTHON
small=(--input "$work/shared/in/*.png" --model MobileNetV3Small --weights random:0 --image_size 32x32 --rows_per_unit 8)

embedded() { # FOLDER: how many images its manifest says are embedded
    "$python" -c 'import json, sys; print(json.load(open(sys.argv[1]))["totals"]["embedded"])' "$1/manifest.json"
}

dev_only() { # PREFIX: what the dev lock has and the production lock has not
    comm -13 <(grep -oE '^[a-z0-9._-]+==' "$1.lock" | sort -u) <(grep -oE '^[a-z0-9._-]+==' "$1-dev.lock" | sort -u) \
        | tr -d '='
}

check_stage() { # STAGE USER [PREFIX OF THE LOCKS]
    local size installed strays output
    user=$2
    [[ $(buildah "${storage[@]}" inspect --format '{{.OCIv1.Config.User}}' "imagebeam:$1") == "${user#0}" ]] \
        || fail "the stage $1 does not run as user $user"
    container=$(buildah "${storage[@]}" from --pull=never "imagebeam:$1")
    size=$(du -sm "$(buildah "${storage[@]}" mount "$container")" | cut -f1)
    say "$1: $size MB, user $(inside id -u), $(inside imagebeam --version)"
    [[ $(inside id -u) == "$user" ]] || fail "the stage $1 runs as user $(inside id -u), not $user"
    installed=$(inside python -m pip list --format freeze --disable-pip-version-check | sed 's/=.*//' \
        | tr 'A-Z_' 'a-z-')
    strays=$(grep -Fx -f <(dev_only "${3:-requirements}") <<< "$installed" || true)
    [[ -z $strays ]] || fail "the stage $1 holds packages of the dev lock only: $strays"
    output=$work/shared/out-$1
    inside imagebeam extract "${small[@]}" --output "$output" > "$work/log" 2>&1 \
        || { tail -n 20 "$work/log" >&2; fail "extract fails in the stage $1"; }
    [[ $(embedded "$output") == 24 ]] || fail "extract in the stage $1 embedded $(embedded "$output") of 24 images"
    echo "extract inside: 24 of 24 images"
}

check_dicom() { # the files of pydicom's wheel, by tensorflow-io; in $container
    local output=$work/shared/out-dicom files
    files=$(inside python -c 'import pathlib, pydicom; print(pathlib.Path(pydicom.__file__).parent)')/data/test_files
    inside imagebeam extract --input "$files/{CT,MR}_small.dcm" "${small[@]:2}" --output "$output" > "$work/log" 2>&1 \
        || { tail -n 20 "$work/log" >&2; fail "extract of DICOM files fails"; }
    [[ $(embedded "$output") == 2 ]] || fail "extract embedded $(embedded "$output") of 2 DICOM files"
    echo "extract inside: 2 of 2 DICOM files"
}

check_pool() { # STAGE: a launcher in one container, its units worked by the worker pool in another (Beam's boot: port 50000)
    local output=$work/shared/out-pool worker
    worker=$(buildah "${storage[@]}" from --pull=never "imagebeam:$1")
    setsid buildah "${storage[@]}" run --hostname localhost --user "$user" --volume "$work/shared:$work/shared" "$worker" -- \
        /opt/apache/beam/boot --worker_pool > "$work/pool.log" 2>&1 &
    pool=$!
    for ((second = 0; second < 120; second++)); do # a launcher does not wait for it
        (: < /dev/tcp/localhost/50000) 2> /dev/null && break
        sleep 1
    done
    say "extract through $1's worker pool at localhost:50000"
    inside timeout 300 imagebeam extract "${small[@]}" --output "$output" --runner=PortableRunner \
        --job_endpoint=embed --environment_type=EXTERNAL --environment_config=localhost:50000 > "$work/log" 2>&1 \
        || { tail -n 20 "$work/log" "$work/pool.log" >&2; fail "extract through the worker pool fails"; }
    [[ $(embedded "$output") == 24 ]] || fail "the worker pool embedded $(embedded "$output") of 24 images"
    grep -q "Starting worker with command" "$work/pool.log" || { tail -n 20 "$work/pool.log" >&2; fail "the worker pool was given no work"; }
    kill -- "-$pool" 2> /dev/null || true
    pool=
    echo "extract through the pool: 24 of 24 images"
}

for stage in "${@:-worker}"; do
    if [[ $stage == tfio ]]; then build "$stage" --build-arg ACCELERATOR=tfio; else build "$stage"; fi
    case $stage in
        worker)
            check_stage worker 0
            check_pool worker
            ;;
        rootless)
            check_stage rootless 10001
            ;;
        dataflow)
            check_stage dataflow 0
            inside test -x /opt/google/dataflow/python_template_launcher || fail "the stage dataflow has no template launcher"
            inside python -m py_compile /opt/imagebeam/extract.py || fail "the template's program cannot be compiled"
            ;;
        tfio)
            check_stage tfio 0 requirements-tfio
            check_dicom
            ;;
        *) fail "no such stage: $stage" ;;
    esac
done
say "built and run: ${*:-worker}"
