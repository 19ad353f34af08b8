# shellcheck shell=bash
# Sourced by the launchers: reads flags --name=value, reports mistakes in one line, and provides the
# dry run.
#
#   USAGE='...'
#   read_arguments "name zone spot!" "$@"   # sets $name, $zone, $spot (1 or empty), train_arguments
#   need name zone
#   run gcloud ...                          # with --dry-run, prints the command instead
#
# Every launcher has --config and --workdir. exedit.train gets them and all arguments behind `--`.

fail() {
  printf 'error: %s\n' "$*" >&2
  exit 2
}

# read_arguments NAMES ARGUMENTS: an exclamation mark behind a name marks a flag without a value.
read_arguments() {
  local known_flags=" ${1//$'\n'/ } config workdir dry_run! " flag_name flag_value
  shift
  train_arguments=()
  while [ $# -gt 0 ]; do
    case $1 in
      -h | --help)
        printf '%s\n' "$USAGE"
        exit 0
        ;;
      --)
        shift
        train_arguments+=("$@")
        break
        ;;
      --*) ;;
      *) fail "'$1' is not a flag: flags are written --name=value; arguments for exedit.train follow --" ;;
    esac
    flag_name=${1#--} flag_value=''
    case $flag_name in
      *=*) flag_value=${flag_name#*=} flag_name=${flag_name%%=*} ;;
    esac
    case $known_flags in
      *" ${flag_name//-/_}! "*)
        [ "$1" = "--$flag_name" ] || fail "--$flag_name takes no value"
        flag_value=1
        ;;
      *" ${flag_name//-/_} "*)
        [ -n "$flag_value" ] || fail "--$flag_name needs a value: --$flag_name=..."
        ;;
      *) fail "there is no flag --$flag_name; see --help. Arguments for exedit.train follow --" ;;
    esac
    printf -v "${flag_name//-/_}" %s "$flag_value"
    shift
  done
}

# need NAMES: fails for the first of these flags that was not given.
need() {
  local flag_name
  for flag_name in "$@"; do
    [ -n "${!flag_name:-}" ] || fail "--${flag_name//_/-} is missing: see --help"
  done
}

# matches NAME PATTERN WORDS: fails if the flag's value does not match; WORDS describe the pattern.
matches() {
  [[ ${!1} =~ ^($2)$ ]] || fail "--${1//_/-} is '${!1}': it must be $3"
}

# check_workdir MOUNT: the workdir must be an absolute path that all machines see, or gs://... MOUNT is
# the folder where --bucket is mounted, or empty.
check_workdir() {
  local remedy='of a folder that all machines see'
  [ -z "${1:-}" ] || remedy+="; with --bucket=NAME this is $1/..."
  case ${workdir:?} in
    gs://*/* | /*) ;;
    *://*) fail "--workdir is '$workdir': give gs://... or the absolute path $remedy" ;;
    *) fail "--workdir is '$workdir': give the absolute path $remedy" ;;
  esac
}

# Prints a command as one line that a shell reads back as the same words.
quoted() {
  local out='' word
  for word in "$@"; do
    case $word in
      *[!A-Za-z0-9_./:=@%+,-]* | '') word="'${word//\'/\'\\\'\'}'" ;;
    esac
    out+="${out:+ }$word"
  done
  printf '%s' "$out"
}

run() {
  if [ -n "${dry_run:-}" ]; then
    quoted "$@"
    echo
  else
    "$@"
  fi
}
