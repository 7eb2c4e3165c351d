"""The walk through a script ends where bash ends: the same servers, words and variables.

Real bash runs each script with stubs in place of what it would start.
"""

import os
import subprocess

import pytest

from raylaunch.importer.interpreter import read_scripts
from raylaunch.importer.script_model import Sources

STUB = """#!/bin/bash
{ printf '%s\\0' "$@"; printf '\\1'; env -0 | grep -z '^T_'; printf '\\2'; } >> "$RECORD"
"""

SCRIPTS = {
    "command substitution is a word": "export T_A=$(printf x)\nexport T_B=4\nvllm serve /m",
    "set -a": "set -a\nT_A=1\nset +a\nT_B=2\nvllm serve /m",
    "set -o allexport": "set -o allexport\nT_A=1\nset +o allexport\nT_B=2\nvllm serve /m",
    "arithmetic": "A=2\nB=$(( A * 3 + 1 ))\n(( C = B > 6 ? 1 : 0 ))\nvllm serve /m --b $B --c $C",
    "defaults": 'A=${A:-4}\nB=${B-$A}\n: ${C:=7}\nvllm serve /m --a "$A" --b $B --c ${C:+yes}',
    "test": 'X=3\n[ "$X" -gt 2 ] && Y=big || Y=small\nvllm serve /m --y $Y',
    "double bracket": 'X=ray\nif [[ -n "$X" && $X == r* ]]; then Y=1; else Y=2; fi\nvllm serve /m --y $Y',
    "elif": "X=b\nif [ $X = a ]; then Y=1; elif [ $X = b ]; then Y=2; else Y=3; fi\nvllm serve /m -y $Y",
    "case": "X=node1\ncase $X in node0) R=0 ;; node1|node2) R=1 ;; *) R=9 ;; esac\nvllm serve /m -r $R",
    "for": "for i in 0 1 2; do export T_I=$i; vllm serve /m --rank $((4 + i)); done",
    "counting for": "for ((i = 0; i < 3; i++)); do vllm serve /m --i $i; done",
    "brace range": "for i in {1..3}; do vllm serve /m --i $i; done",
    "seq": "for i in $(seq 0 2); do vllm serve /m --i $i; done",
    "while": "i=0\nwhile [ $i -lt 3 ]; do vllm serve /m --i $i; i=$((i + 1)); done",
    "break": "for i in 1 2 3; do [ $i = 2 ] && break; vllm serve /m --i $i; done",
    "continue": "for i in 1 2 3; do [ $i = 2 ] && continue; vllm serve /m --i $i; done",
    "cutting": "e=192.0.2.1:7\nip=${e%%:*}; r=${e##*:}\nvllm serve /m --ip $ip --r $r",
    "replacing": "n=a_b_c\nvllm serve /m --n ${n//_/-} --u ${n^^} --s ${n:2:3} --l ${#n}",
    "function": 'start() { local r=$1; shift; export T_R=$r; vllm serve /m --r $r "$@"; }\nstart 3 --x 1',
    "return": "f() { [ $1 = 1 ] && return; vllm serve /m --x $1; }\nf 1\nf 2",
    "exit": "X=1\nif [ $X = 1 ]; then vllm serve /a; exit 0; fi\nvllm serve /b",
    "subshell": "export T_A=1\n(export T_A=2; vllm serve /a)\nvllm serve /b",
    "bash -c has only exports": "A=1\nexport T_B=2\nbash -c 'vllm serve /m --a \"${A:-none}\" --b $T_B'",
    "bash heredoc": "X=5\nbash <<EOF\nexport T_A=$X\nvllm serve /m --x \\$T_A\nEOF",
    "quoted heredoc": "X=5\nbash <<'EOF'\nX=6\nvllm serve /m --x $X\nEOF",
    "written script": "cat > run.sh <<'EOF'\nexport T_A=1\nvllm serve /m --x $1\nEOF\nbash run.sh 9",
    "array": 'A=(--a "b c")\nA+=(--d)\nvllm serve /m "${A[@]}" --n ${#A[@]} --first ${A[0]}',
    "keyed array": "declare -A M=([x]=1 [y]=2)\nk=y\nvllm serve /m --v ${M[$k]}",
    "eval": "C='vllm serve /m --x 1'\neval \"$C --y 2\"",
    "command in a variable": 'C="vllm serve /m"\nC+=" --x 1"\n$C',
    "assignment is not split": 'A="x y"\nexport T_A=$A\nvllm serve /m',
    "empty word": 'E=""\nvllm serve /m $E --a "$E" --b 1',
    "joined pieces": 'A="1 2"\nvllm serve a${A}b /m',
    "env -u": "export T_A=1 T_B=2\nenv -u T_A T_C=3 vllm serve /m",
    "env -i": "export T_A=1\nenv -i PATH=$PATH RECORD=$RECORD T_C=3 vllm serve /m",
    "prefix": "export T_A=1\nT_A=2 T_B=3 nohup vllm serve /m",
    "wrappers": "nice -n 0 stdbuf -oL timeout -s KILL 60 vllm serve /m --x 1",
    "indirect": "N=A\nA=7\nvllm serve /m --x ${!N}",
    "unset": "export T_A=1 T_B=2\nunset T_A\nvllm serve /m",
    "export -n is rare, export later is not": "T_A=1\nexport T_A\nT_A=2\nvllm serve /m",
    "comment and continuation": "vllm serve /m \\\n  --x 1 # --y 2\n",
    "group": "X=1\n[ $X = 1 ] && { export T_A=1; Y=2; }\nvllm serve /m --y $Y",
    "not": "X=1\nif ! [ $X = 2 ]; then Y=1; else Y=2; fi\nvllm serve /m --y $Y",
    "escapes": "vllm serve /m --a \"a\\\"b\\$c\" --b 'it'\\''s' --c a\\ b",
    "json": 'N=3\nvllm serve /m --j \'{"a": {"b": 1}}\' --k "{\\"n\\": $N}"',
    "source": ". ./common.sh\nvllm serve /m --x $COMMON",
}
COMMON = "COMMON=shared\nexport T_COMMON=1\n"


@pytest.mark.parametrize("name", SCRIPTS)
def test_servers_are_those_that_bash_starts(name, tmp_path):
    assert imported(SCRIPTS[name]) == run_by_bash(SCRIPTS[name], tmp_path)


def imported(text):
    reading = read_scripts(Sources({"run.sh": text, "common.sh": COMMON}))
    servers = []
    for server in reading.servers:
        words = [word for flag in server.flags for word in flag.words]
        env = {name: each.value for name, each in server.env.items() if name.startswith("T_")}
        # `$(printf x)` is left open: what only a run can tell is never half a value.
        env = {name: "x" if value == "$(printf x)" else value for name, value in env.items()}
        servers.append((["serve", server.model, *server.extra, *words], env))
    return servers


def run_by_bash(text, folder):
    stub = folder / "bin" / "vllm"
    stub.parent.mkdir()
    stub.write_text(STUB)
    stub.chmod(0o755)
    record = folder / "record"
    (folder / "common.sh").write_text(COMMON)
    script = folder / "main.sh"
    script.write_text(text)
    env = {"PATH": f"{stub.parent}{os.pathsep}/usr/bin:/bin", "RECORD": str(record)}
    done = subprocess.run(
        ["bash", script], env=env, cwd=folder, capture_output=True, text=True, check=False
    )
    assert record.is_file(), done.stderr
    servers = []
    for entry in record.read_text().split("\2")[:-1]:
        words, _, variables = entry.partition("\1")
        pairs = [each.partition("=") for each in variables.split("\0") if each]
        servers.append((words.split("\0")[:-1], {name: value for name, _, value in pairs}))
    return servers
