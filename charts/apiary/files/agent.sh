#!/usr/bin/env bash
# agent.sh run | ready | live | clean: what a pod of this chart does on its node, with nothing but the agent's own image.
#
# "run" starts the agent without policies, loads each of them from the pod's ConfigMap, and then takes over from whatever
# enforces on this node: another pod's agent, or pins that an ended one left. Policies that override kernel functions come
# up in monitor while another copy enforces; one bpftool process flips all of them, new to enforce before old to monitor.
# One start is an instance, <pod uid>-<n>: pins in <bpffs>/apiary-<instance>, run directory /run/apiary/<instance> with
#   lock   held while its supervisor lives
#   undo   from before the flip until the take-over is done: what puts the former modes back
# and beside them "active", the instance that answers for enforcement, and "loading", held by the only one that may load.
# Whoever is active removes what dead instances left; an active one that ends leaves its pins, any other takes its own away.
set -euo pipefail
shopt -s nullglob

bpffs=${APIARY_BPFFS:-/sys/fs/bpf}
run=${APIARY_RUN:-/run/apiary}
pod=${APIARY_POD:-/var/run/tetragon}
etc=${APIARY_ETC:-/etc/apiary}
proc=${APIARY_PROC:-/procRoot}
tick=${APIARY_TICK:-2}
set=$etc/policies/..data
instances='????????-????-????-????-????????????-*' # not the slots of a host that is no node
agent='' id=''
declare -A listed

say() { printf 'apiary: %s\n' "$*" >&2; }
die() { say "$*"; exit 1; }

be() { # which instance this process speaks for
    id=$1 mine=$run/$1 pins=$bpffs/apiary-$1
    client=(tetra --server-address "unix://$mine/tetragon.sock")
}

active() { # the instance that answers for enforcement, into $in_charge
    in_charge=''
    [ ! -e "$run/active" ] || read -r in_charge <"$run/active" || true
}

alive() { # whether an instance's supervisor lives
    local file code=0
    [ -e "$run/$1/lock" ] || return 1
    { exec {file}<"$run/$1/lock"; } 2>/dev/null || return 1
    flock -n "$file" && code=1
    exec {file}<&-
    return "$code"
}

nap() { # until the agent ends, at most this many seconds
    sleep "$1" {lock}>&- &
    wait -n ${agent:+"$agent"} $! || true
}

need_bpffs() { # pins on anything but the node's own BPF file system would vanish with the pod
    grep -q " $bpffs bpf " "$proc/self/mounts" || mount -t bpf bpf "$bpffs" || die "$bpffs is no BPF file system and cannot be mounted"
    grep -q " $bpffs bpf " "$proc/1/mounts" || die "the node has no BPF file system at $bpffs: mount one there (mount -t bpf bpf $bpffs)"
}

list() { # what the agent runs, into listed: namespace/name -> "state mode". Its JSON may have spaces anywhere
    local text name line
    text=$("${client[@]}" --timeout 60s tracingpolicy list -o json 2>/dev/null) || return 1
    text=${text//[[:space:]]/}
    listed=()
    while read -r line; do
        [[ $line =~ ^'{"id":"'[0-9]+'","name":"'([^\"]*)'"'(',"namespace":"'([^\"]*)'"')? ]] || continue
        name=${BASH_REMATCH[3]}/${BASH_REMATCH[1]}
        [[ $line =~ '"state":"TP_STATE_'([A-Z_]+)'"' ]] || continue
        listed[$name]=${BASH_REMATCH[1],,}
        [[ $line =~ '"mode":"TP_MODE_'([A-Z_]+)'"' ]] && listed[$name]+=" ${BASH_REMATCH[1],,}"
    done <<<"${text//'{"id":"'/$'\n{"id":"'}"
}

lacking() { # what is not as the set wants it, in words; $1: the mode of what waits for the flip
    local file name namespace mode how found
    list || { echo "the agent does not answer"; return; }
    while IFS=$'\t' read -r file name namespace mode how; do
        found=${listed[${namespace#-}/$name]:-not loaded}
        [ "$mode $how" != "enforce overrides" ] || mode=$1
        case "$mode: $found" in
            "enforce: enabled enforce" | "monitor: enabled monitor" | "monitor: enabled monitor_only" | "observe: enabled"*) ;;
            *) echo "$name is $found, not $mode;" ;;
        esac
    done <"$set/policies.tsv"
}

others() { # pin directories of other instances, and of upstream's agent where it is to be taken over from
    local one
    for one in "$bpffs"/apiary-$instances ${APIARY_ADOPT:+"$bpffs"/tetragon}; do
        [ ! -d "$one" ] || [ "$one" = "${pins:-}" ] || echo "$one"
    done
}

upstream_runs() { # whether an agent that is none of ours runs on the node
    local file words
    while read -r file; do
        words=$(tr '\0' ' ' <"$file" 2>/dev/null) || continue
        [[ $words =~ (^|[ /])tetragon' ' && $words != *apiary-* ]] && return 0
    done < <(grep -la tetragon "$proc"/[0-9]*/cmdline 2>/dev/null)
    return 1
}

begin() { # a new instance, seen by others only once its lock is held
    local n=0
    mkdir -p "$run"
    while [ -e "$run/$POD_UID-$n" ]; do n=$((n + 1)); done
    rm -rf "$run/.$POD_UID-$n"
    mkdir -m 700 "$run/.$POD_UID-$n"
    exec {lock}>"$run/.$POD_UID-$n/lock"
    flock -n "$lock" || die "no lock on $run: flock is needed"
    mv "$run/.$POD_UID-$n" "$run/$POD_UID-$n"
    be "$POD_UID-$n"
    echo "$id" >"$pod/instance"
}

begin_loading() { # $1: "wait", or "" to fail while another instance loads
    exec {loading}>"$run/loading"
    until flock -n "$loading"; do
        [ -n "$1" ] || { exec {loading}>&-; return 1; }
        nap 0.5
    done
}

start_agent() {
    rm -f "$pod/tetragon.pid"
    mkdir -p "$pod/none"
    tetragon --config-dir "$etc/config" --bpf-dir "apiary-$id" --tracing-policy-dir "$pod/none" \
        --server-address "unix://$mine/tetragon.sock" \
        ${APIARY_EXPORT:+--export-filename "$APIARY_EXPORT/$POD_UID.log"} {lock}>&- {loading}>&- &
    agent=$!
    until [ -S "$mine/tetragon.sock" ] && list; do
        kill -0 "$agent" 2>/dev/null || die "the agent ended while it started; its own lines say why"
        nap 0.2
    done
}

load() { # $1: the mode of what waits for the flip
    local file name namespace mode how lack
    while IFS=$'\t' read -r -u 3 file name namespace mode how; do
        [ "$mode $how" != "enforce overrides" ] || mode=$1
        [ "$mode" != observe ] || mode=''
        "${client[@]}" --timeout 600s tracingpolicy add "$set/$file" ${mode:+--mode "$mode"} {lock}>&- {loading}>&- &
        wait $! && continue
        while list && [[ ${listed[${namespace#-}/$name]:-} = loading* ]]; do nap 1; done # it goes on when the client gives up
        [[ ${listed[${namespace#-}/$name]:-} = enabled* ]] || die "policy $name does not load; the reason stands above"
    done 3<"$set/policies.tsv"
    lack=$(lacking "$1")
    [ -z "$lack" ] || die "the agent does not run what it was given: $lack"
}

enforcing_overrides() { # policy_conf maps below $1 of policies that override functions and enforce
    local conf
    for conf in "$1"/*/policy_conf; do
        [ -n "$(find "${conf%/*}" -path '*/generic_kprobe*/*' -name override_tasks)" ] || continue
        [[ $(bpftool -j map dump pinned "$conf" 2>/dev/null) = *'"value":["0x00"]'* ]] && echo "$conf"
    done
    return 0
}

modes() { # commands that put mode $1 into these policy_conf maps
    local mode=$1 conf
    shift
    for conf in "$@"; do echo "map update pinned $conf key 0 0 0 0 value $mode"; done
}

take_over() {
    local file name namespace mode how dir lack new=() old=()
    while IFS=$'\t' read -r file name namespace mode how; do
        [ "$namespace" = - ] || name=$namespace:$name
        [ "$mode $how" != "enforce overrides" ] || new+=("$pins/${name//\//_}/policy_conf")
    done <"$set/policies.tsv"
    for dir in $(others); do mapfile -t -O ${#old[@]} old < <(enforcing_overrides "$dir"); done
    { modes 0 "${new[@]}"; modes 1 "${old[@]}"; } >"$mine/flip"
    { modes 0 "${old[@]}"; modes 1 "${new[@]}"; } >"$mine/undo.new"
    mv "$mine/undo.new" "$mine/undo"
    [ ! -s "$mine/flip" ] || bpftool batch file "$mine/flip" >/dev/null || die "the modes could not be set"
    lack=$(lacking enforce)
    [ -z "$lack" ] || die "the flip did not do what it was to do: $lack"
    echo "$id" >"$run/active.new"
    mv "$run/active.new" "$run/active"
    rm "$mine/undo"
    ln -s "$id/tetragon.sock" "$run/.$id.sock"
    mv "$run/.$id.sock" "$run/tetragon.sock"
    say "$id is in charge: $(wc -l <"$set/policies.tsv") policies"
}

undo() { # a take-over that did not finish; $1: its run directory. What is gone by now stays gone
    local line words
    [ -e "$1/undo" ] || return 0
    while read -r line; do
        read -r -a words <<<"$line"
        [ ! -e "${words[3]}" ] || echo "$line"
    done <"$1/undo" >"$1/undo.now"
    [ ! -s "$1/undo.now" ] || bpftool batch file "$1/undo.now" >/dev/null || say "modes of a take-over that did not finish could not be put back"
    rm -f "$1/undo"
}

tidy() { # what dead instances left goes; returns 0 if there was any
    local one name found=1
    for one in "$run"/$instances "$bpffs"/apiary-$instances; do
        name=${one##*/}
        name=${name#apiary-}
        if [ "$name" = "$id" ] || alive "$name"; then continue; fi
        [ ! -d "$run/$name" ] || undo "$run/$name"
        rm -rf "$bpffs/apiary-$name" "$bpffs/apiary-${name}_old" "${run:?}/$name"
        found=0
        say "$name is gone: its pins and its run directory are removed"
    done
    if [ -n "${APIARY_ADOPT:-}" ] && [ -d "$bpffs/tetragon" ] && ! upstream_runs; then
        rm -rf "$bpffs/tetragon" "$bpffs/tetragon_old"
        found=0
        say "upstream's agent is gone: its pins are removed"
    fi
    return "$found"
}

entries() { # every entry of every override_tasks map, as the command that deletes it
    local map
    find "$pins" -name override_tasks | while read -r map; do
        { bpftool -j map dump pinned "$map" 2>/dev/null | grep -o '"key":\["0x[^]]*' || true; } |
            sed "s|\"key\":\\[|map delete pinned $map key |; s/[\",]/ /g"
    done
}

purge() { # entries that outlive half a second belong to threads that are gone; a map full of them denies nothing any more
    entries | sort >"$mine/entries"
    [ -s "$mine/entries" ] || return 0
    sleep 0.5
    comm -12 "$mine/entries" <(entries | sort) >"$mine/stale"
    [ -s "$mine/stale" ] || return 0
    bpftool batch file "$mine/stale" >/dev/null 2>&1 || return 1 # one of them was alive after all
    say "$(wc -l <"$mine/stale") stale override entries cleared"
}

sweep() { # event files of pods that are gone, after their time
    local file name one
    [ -n "${APIARY_EXPORT:-}" ] || return 0
    find "$APIARY_EXPORT" -maxdepth 1 -name '????????-????-????-????-????????????*.log*' -mmin "+$((${APIARY_KEEP_HOURS:-48} * 60))" |
        while read -r file; do
            name=${file##*/}
            for one in "$run/${name:0:36}"-*; do ! alive "${one##*/}" || continue 2; done
            rm -f "$file"
        done
}

end() {
    local code=$?
    trap '' TERM INT
    trap - EXIT
    set +e
    active
    [ "$in_charge" = "$id" ] || undo "$mine"
    if [ -n "$agent" ]; then
        kill "$agent" 2>/dev/null
        wait "$agent"
    fi
    [ "$in_charge" = "$id" ] || rm -rf "$pins" "${pins}_old"
    exit "$code"
}

supervise() {
    local before=enforce dirty=''
    need_bpffs
    begin
    trap end EXIT
    trap 'exit 0' TERM INT
    sweep
    begin_loading wait
    active
    for one in "$run"/$instances; do
        [ "${one##*/}" = "$id" ] || [ "${one##*/}" = "$in_charge" ] || alive "${one##*/}" || undo "$one"
    done
    [ -z "$(others)" ] || before=monitor
    start_agent
    load "$before"
    take_over
    exec {loading}>&-
    while kill -0 "$agent" 2>/dev/null; do
        active
        if [ "$in_charge" = "$id" ]; then
            ! tidy || dirty=yes
            [ -z "$dirty" ] || ! purge || dirty=''
        elif ! alive "$in_charge" && begin_loading ''; then # it ended before this one: back in charge
            take_over
            exec {loading}>&-
        fi
        nap "$tick"
    done
    die "the agent ended; its own lines say why"
}

speak() { # for the instance of this pod
    [ -e "$pod/instance" ] || die "not started yet"
    be "$(<"$pod/instance")"
}

case ${1:-} in
    run) supervise ;;
    ready)
        speak
        active
        [ "$in_charge" = "$id" ] || die "not in charge${in_charge:+: $in_charge is}"
        lack=$(lacking enforce)
        [ -z "$lack" ] || die "$lack"
        ;;
    live)
        speak
        list || die "the agent does not answer"
        ;;
    clean)
        need_bpffs
        for one in "$run"/$instances; do ! alive "${one##*/}" || die "the pod of ${one##*/} still runs here: remove it first"; done
        tidy || say "nothing to remove"
        rm -f "$run/active" "$run/tetragon.sock" "$run/loading"
        [ -z "$(others)" ] || die "still there: $(others)"
        ;;
    *) die "usage: agent.sh run | ready | live | clean" ;;
esac
