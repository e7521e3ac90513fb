"""The scripts themselves: bash, zsh and fish, each from the same tree of commands.

Bash and zsh walk the words of the line once: which command it is, how many of its arguments are there, and what the
word at the cursor may be. Fish does that by itself and only gets conditions.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence

from worker.cli.completion_tree import Command, Value

Keys = Mapping[str, Sequence[str]]


def bash(commands: Sequence[Command], keys: Keys) -> str:
    """A function for ``complete -F``; it needs no package bash-completion."""
    return _BASH.replace("@TABLES@", _tables(commands)).replace("@KEYS@", _keys(keys))


def zsh(commands: Sequence[Command], keys: Keys) -> str:
    """A file for a folder of ``fpath``, which may also be sourced."""
    helps = "\n".join(_zsh_help(command, commands) for command in commands)
    script = _ZSH.replace("@TABLES@", _tables(commands)).replace("@KEYS@", _keys(keys))
    return script.replace("@HELPS@", helps)


def _tables(commands: Sequence[Command]) -> str:
    """Shell functions that are the tree as ``case`` statements, for bash and zsh alike."""
    inner, options, values, arguments = [], [], [], []
    for command in commands:
        path = shlex.quote(" ".join(command.path))
        inner.append(f"    {path}) echo {_list(command.inner)} ;;")
        names = [name for option in command.options for name in option.names]
        options.append(f"    {path}) echo {_list(names)} ;;")
        for option in command.options:
            if option.value is not None:
                cases = "|".join(shlex.quote(f"{' '.join(command.path)}:{name}") for name in option.names)
                values.append(f"    {cases}) echo {_value(option.value)} ;;")
        for index, value in enumerate(command.arguments):
            at = shlex.quote(f"{' '.join(command.path)}:{index}")
            arguments.append(f"    {at}) echo {_value(value)} ;;")
    return "\n".join(
        f'{name}() {{\n  case "$1" in\n' + "\n".join(cases) + "\n  esac\n}"
        for name, cases in {
            "_streaminfer_inner": inner,
            "_streaminfer_options": options,
            "_streaminfer_value": values,
            "_streaminfer_argument": arguments,
        }.items()
    )


def _list(words: Sequence[str]) -> str:
    return shlex.quote(" ".join(words))


def _value(value: Value) -> str:
    return _list([value.kind, *value.words])


def _keys(keys: Keys) -> str:
    cases = [f"    {shlex.quote(key)}) echo {_list([*words])} ;;" for key, words in keys.items() if words]
    return (
        f"_streaminfer_keys() {{\n  echo {_list([f'{key}=' for key in keys])}\n}}\n"
        '_streaminfer_words() {\n  case "$1" in\n' + "\n".join(cases) + "\n  esac\n}"
    )


def _zsh_help(command: Command, commands: Sequence[Command]) -> str:
    """The lines beside the options and inner commands of one command, as ``_describe`` takes them."""
    inside = {each.path[-1]: each.help for each in commands if each.path[:-1] == command.path and each.path}
    words = [f"{name}:{inside.get(name, '')}" for name in command.inner]
    words += [f"{name}:{option.help}" for option in command.options for name in option.names]
    listed = "\n".join(f"      {shlex.quote(word)}" for word in words)
    return f"    {shlex.quote(' '.join(command.path))})\n      reply=(\n{listed}\n      ) ;;"


_BASH = """\
# bash completion of streaminfer, written by `streaminfer completion bash`
@TABLES@
@KEYS@

_streaminfer_complete() {
  # bash cuts words at = and : ; put them together again
  local -a words=()
  local word glued=no index last=$COMP_CWORD
  for ((index = 0; index <= last; index++)); do
    word=${COMP_WORDS[index]}
    if [[ $index -gt 0 && ( $glued == yes || $word =~ ^[=:]+$ ) ]]; then
      words[${#words[@]}-1]+=$word
    else
      words+=("$word")
    fi
    [[ $word =~ ^[=:]+$ ]] && glued=yes || glued=no
  done
  local raw=${COMP_WORDS[last]} cur=${words[${#words[@]}-1]} before
  [[ $raw =~ ^[=:]+$ ]] && raw=
  before=${cur%"$raw"}

  local path= option= value= arguments=0 inner
  for ((index = 1; index < ${#words[@]} - 1; index++)); do
    word=${words[index]}
    if [[ -n $option ]]; then option= value=; continue; fi
    if [[ $word == --*=* ]]; then continue; fi
    if [[ $word == -?* ]]; then
      value=$(_streaminfer_value "$path:$word")
      [[ -n $value ]] && option=$word
      continue
    fi
    inner=" $(_streaminfer_inner "$path") "
    if [[ $inner == *" $word "* ]]; then
      path=${path:+$path }$word
    else
      arguments=$((arguments + 1))
    fi
  done

  COMPREPLY=()
  if [[ -z $option && $cur == --*=* ]]; then
    value=$(_streaminfer_value "$path:${cur%%=*}")
    before=${before#"${cur%%=*}="}
    cur=${cur#*=}
    [[ -z $value ]] && return
    _streaminfer_reply "$value" "$cur" "$before"
  elif [[ -n $option ]]; then
    _streaminfer_reply "$value" "$cur" "$before"
  elif [[ $cur == -* ]]; then
    COMPREPLY=($(compgen -W "$(_streaminfer_options "$path")" -- "$cur"))
  else
    inner=$(_streaminfer_inner "$path")
    if [[ -n $inner ]]; then
      [[ $arguments -eq 0 ]] && COMPREPLY=($(compgen -W "$inner" -- "$cur"))
    else
      _streaminfer_reply "$(_streaminfer_argument "$path:$arguments")" "$cur" "$before"
    fi
  fi
}

# value, the word at the cursor, and its part that readline has taken already
_streaminfer_reply() {
  local kind=${1%% *} words=${1#* } cur=$2 before=$3 key index IFS=$' \\t\\n'
  case $kind in
    words) COMPREPLY=($(compgen -W "$words" -- "$cur")) ;;
    setting)
      if [[ $cur == *=* ]]; then
        key=${cur%%=*}
        COMPREPLY=($(compgen -P "$key=" -W "$(_streaminfer_words "$key")" -- "${cur#*=}"))
      else
        COMPREPLY=($(compgen -W "$(_streaminfer_keys)" -- "$cur"))
        compopt -o nospace 2>/dev/null
      fi ;;
    folder) compopt -o filenames 2>/dev/null; IFS=$'\\n'; COMPREPLY=($(compgen -d -- "$cur")) ;;
    yaml)
      compopt -o filenames 2>/dev/null
      IFS=$'\\n'
      COMPREPLY=($(compgen -d -- "$cur"; compgen -f -X '!*.y*ml' -- "$cur"))
      [[ ${#COMPREPLY[@]} -eq 0 ]] && COMPREPLY=($(compgen -f -- "$cur")) ;;
    file) compopt -o filenames 2>/dev/null; IFS=$'\\n'; COMPREPLY=($(compgen -f -- "$cur")) ;;
  esac
  if [[ -n $before && $cur == "$before"* ]]; then
    for index in "${!COMPREPLY[@]}"; do COMPREPLY[index]=${COMPREPLY[index]#"$before"}; done
  fi
}

complete -F _streaminfer_complete streaminfer
"""

_ZSH = """\
#compdef streaminfer
# zsh completion of streaminfer, written by `streaminfer completion zsh`
@TABLES@
@KEYS@
_streaminfer_helps() {
  case "$1" in
@HELPS@
  esac
}

_streaminfer() {
  local where= option= value= inner word arguments=0 index
  local -a reply
  for ((index = 2; index < CURRENT; index++)); do
    word=${words[index]}
    if [[ -n $option ]]; then option= value=; continue; fi
    if [[ $word == --*=* ]]; then continue; fi
    if [[ $word == -?* ]]; then
      value=$(_streaminfer_value "$where:$word")
      [[ -n $value ]] && option=$word
      continue
    fi
    inner=" $(_streaminfer_inner "$where") "
    if [[ $inner == *" $word "* ]]; then
      where=${where:+$where }$word
    else
      (( arguments += 1 ))
    fi
  done
  word=${words[CURRENT]}
  if [[ -z $option && $word == --*=* ]]; then
    value=$(_streaminfer_value "$where:${word%%=*}")
    compset -P '*='
    _streaminfer_reply "$value"
  elif [[ -n $option ]]; then
    _streaminfer_reply "$value"
  elif [[ $word == -* || -n $(_streaminfer_inner "$where") ]]; then
    _streaminfer_helps "$where"
    if [[ $word == -* ]]; then
      reply=(${(M)reply:#-*})
      _describe -o option reply
    else
      (( arguments )) && return 1
      reply=(${reply:#-*})
      _describe command reply
    fi
  else
    _streaminfer_reply "$(_streaminfer_argument "$where:$arguments")"
  fi
}

_streaminfer_reply() {
  local kind=${1%% *} key
  local -a found
  case $kind in
    words) found=(${=1#* }); compadd -a found ;;
    setting)
      if [[ $PREFIX == *=* ]]; then
        key=${PREFIX%%=*}
        compset -P '*='
        found=(${=$(_streaminfer_words "$key")})
        compadd -a found
      else
        found=(${=$(_streaminfer_keys)})
        compadd -S '' -a found
      fi ;;
    folder) _files -/ ;;
    yaml) _files -g '*.(yaml|yml)' || _files ;;
    file) _files ;;
  esac
}

if [[ $funcstack[1] == _streaminfer ]]; then
  _streaminfer "$@"
else
  compdef _streaminfer streaminfer
fi
"""


def fish(commands: Sequence[Command], keys: Keys) -> str:
    """``complete`` lines for a file of fish's folder of completions."""
    lines = [
        "# fish completion of streaminfer, written by `streaminfer completion fish`",
        "complete -c streaminfer -f",
        *_fish_settings(keys),
    ]
    for command in commands:
        lines += _fish_command(command, commands)
    return "\n".join(lines) + "\n"


def _fish_settings(keys: Keys) -> Iterator[str]:
    yield "function __streaminfer_settings"
    yield f"    printf '%s\\n' {' '.join(_fish(f'{key}=') for key in keys)}"
    with_words = [f"{key}={word}" for key, words in keys.items() for word in words]
    yield f"    printf '%s\\n' {' '.join(map(_fish, with_words))}"
    yield "end"


def _fish_command(command: Command, commands: Sequence[Command]) -> Iterator[str]:
    seen = [f"__fish_seen_subcommand_from {word}" for word in command.path]
    here = "; and ".join(seen) if seen else "__fish_use_subcommand"
    at = here
    if command.inner:
        inside = {
            each.path[-1]: each.help for each in commands if each.path[:-1] == command.path and each.path
        }
        free = here if not seen else f"{here}; and not __fish_seen_subcommand_from {' '.join(command.inner)}"
        for name in command.inner:
            help_ = f" -d {_fish(inside[name])}" if inside.get(name) else ""
            yield f"complete -c streaminfer -n {_fish(free)} -a {_fish(name)}{help_}"
        at = free
    for option in command.options:
        names = " ".join(
            f"-l {name[2:]}" if name.startswith("--") else f"-s {name[1:]}" for name in option.names
        )
        takes = "" if option.value is None else f" {_fish_value(option.value)}"
        yield f"complete -c streaminfer -n {_fish(at)} {names}{takes} -d {_fish(option.help)}"
    for value in command.arguments:
        if value.kind == "words":
            yield f"complete -c streaminfer -n {_fish(here)} -a {_fish(' '.join(value.words))}"
        elif value.kind in ("file", "folder", "yaml"):
            yield f"complete -c streaminfer -n {_fish(here)} -F"


def _fish_value(value: Value) -> str:
    """The flags of an option's value."""
    arguments: dict[str, str] = {
        "words": f"-x -a {_fish(' '.join(value.words))}",
        "setting": "-x -a '(__streaminfer_settings)'",
        "folder": "-x -a '(__fish_complete_directories)'",
        "file": "-r -F",
        "yaml": "-r -F",
        "none": "-x",
    }
    return arguments[value.kind]


def _fish(text: str) -> str:
    """A word in single quotes as fish reads them."""
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"


SHELLS: dict[str, Callable[[Sequence[Command], Keys], str]] = {"bash": bash, "zsh": zsh, "fish": fish}
