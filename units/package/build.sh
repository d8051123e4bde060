#!/usr/bin/env bash
# Builds the packages, deb and rpm for amd64 and arm64, into a directory, and
# prints their names. The same commit, and the same Go, make the same bytes.
#
# usage: units/package/build.sh DIR
#
# Version and time are the commit's. In a tree without git they are VERSION, such
# as 1.2.3, and SOURCE_DATE_EPOCH.
set -euo pipefail
shopt -s inherit_errexit
umask 022
out=$(realpath -m "${1:?usage: units/package/build.sh DIR}")
cd "$(dirname "$0")/../.."

fail() {
	printf 'package: error: %s\n' "$1" >&2
	printf 'package: hint: %s\n' "$2" >&2
	exit 1
}

stage=$(mktemp -d)
trap 'rm -rf "$stage"' EXIT

# Symbols are for debuggers; panics and profiles name functions without them.
buildvcs=auto
[[ -z ${VERSION-} ]] || buildvcs=false
for arch in amd64 arm64; do
	CGO_ENABLED=0 GOOS=linux GOARCH=$arch GOAMD64=v1 GOARM64=v8.0 go build -trimpath -buildvcs=$buildvcs -ldflags='-s -w' \
		-o "$stage/$arch/" ./cmd/nodelocaldns ./cmd/nodelocaldns-relay
done

# The version that the Go tool has put into the program, with what Go writes
# with hyphens in the way that dpkg and rpm sort: ~ is before all.
if [[ -z ${VERSION-} ]]; then
	VERSION=$(go version -m "$stage/amd64/nodelocaldns" | awk '$1 == "mod" {print $3}')
	[[ $VERSION == v* ]] || fail 'no version: git does not know this tree, or is not allowed to' \
		'git -C . status says why; without git, set VERSION and SOURCE_DATE_EPOCH'
	VERSION=${VERSION#v}
	VERSION=${VERSION/-/\~}
	VERSION=${VERSION//-/.}
fi
SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct)}
export VERSION SOURCE_DATE_EPOCH STAGE=$stage
date() { command date --utc --date="@$SOURCE_DATE_EPOCH" "$@"; }

share=$stage/share
doc=$share/doc/nodelocaldns
bash=$share/bash-completion/completions zsh=$share/zsh/vendor-completions fish=$share/fish/vendor_completions.d
mkdir -p "$doc/examples" "$share"/man/man{5,8} "$bash" "$zsh" "$fish"
program=$stage/$(go env GOHOSTARCH)/nodelocaldns
[[ -x $program ]] || fail "this machine is $(go env GOHOSTARCH)" 'the pages are written by the program itself: build on amd64 or arm64'
"$program" man --date "$(date +%F)" "$share/man/man8"
mv "$share"/man/man8/*.5 "$share/man/man5"
sed "s/@DATE@/$(date +%F)/; s/@SOURCE@/nodelocaldns $VERSION/" units/package/nodelocaldns-relay.8 >"$share/man/man8/nodelocaldns-relay.8"
"$program" completion bash >"$bash/nodelocaldns"
"$program" completion zsh >"$zsh/_nodelocaldns"
"$program" completion fish >"$fish/nodelocaldns.fish"
"$program" config default >"$doc/examples/config.yaml"
cp units/rbac.yaml "$doc/examples"

# For Debian alone, which wants a changelog.
cp units/package/copyright "$doc"
cat >"$doc/changelog" <<END
nodelocaldns ($VERSION) unstable; urgency=medium

  * What has changed, the log of the project's git repository tells.

 -- nodelocaldns maintainers <maintainers@nodelocaldns.io>  $(LC_ALL=C date +'%a, %d %b %Y %T +0000')
END

# The licences of what is linked want to come along with it.
{
	printf 'The Go programming language, %s\n\n' "$(go env GOVERSION)"
	cat "$(go env GOROOT)/LICENSE"
	for arch in amd64 arm64; do
		GOOS=linux GOARCH=$arch go list -deps -f '{{with .Module}}{{if not .Main}}{{.Path}} {{.Version}} {{.Dir}}{{end}}{{end}}' ./cmd/nodelocaldns ./cmd/nodelocaldns-relay
	done | LC_ALL=C sort -u | while read -r path version dir; do
		shopt -s nullglob
		files=("$dir"/{LICEN[CS]E,COPYING,NOTICE}*)
		((${#files[@]})) || fail "$path has no licence" "look into $dir"
		printf '\n\n%s %s\n\n' "$path" "$version"
		cat "${files[@]}"
	done
} >"$doc/third-party-licenses"
gzip --best --no-name "$share"/man/man?/* "$doc"/{changelog,third-party-licenses}

# rpm may leave out what is documentation, and has other names for some.
{
	cat units/package/nfpm.yaml
	(cd "$share" && find . -type f | LC_ALL=C sort) | while read -r file; do
		file=${file#./}
		source="src: $share/$file, file_info: {mode: 0644}"
		printf '  - {packager: deb, dst: /usr/share/%s, %s}\n' "$file" "$source"
		case $file in
		doc/*/copyright | doc/*/changelog.gz) continue ;;
		doc/* | man/*) source+=', type: doc' ;;
		esac
		printf '  - {packager: rpm, dst: /usr/share/%s, %s}\n' "${file/vendor-completions/site-functions}" "$source"
	done
} >"$stage/nfpm.yaml"

mkdir -p "$out"
rm -f "$out"/nodelocaldns[-_]*.{deb,rpm}
for arch in amd64 arm64; do
	for packager in deb rpm; do
		ARCH=$arch go tool -modfile=test/tools/package/go.mod nfpm package \
			--config "$stage/nfpm.yaml" --packager "$packager" --target "$out" >"$stage/nfpm.log" 2>&1 || {
			cat "$stage/nfpm.log" >&2
			fail "nfpm could not make the $packager for $arch" 'its output is above'
		}
	done
done
printf '%s\n' "$out"/nodelocaldns[-_]*.{deb,rpm}
