# shellcheck shell=bash
# Sourced by the launchers: flags as --name=value, words for what is wrong, and the dry run.
#
#   USAGE='...'
#   read_arguments "name zone spot!" "$@"   # sets $name, $zone and, to 1 or nothing, $spot; train_arguments
#   need name zone
#   run gcloud ...                          # prints with --dry-run, else does
#
# --config and --workdir, which every launcher has, and what follows -- go to exedit.train.

fail() {
  printf 'error: %s\n' "$*" >&2
  exit 2
}

# read_arguments NAMES ARGUMENTS: a name with an exclamation mark is a flag without a value.
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
      *) fail "'$1' is not a flag: flags are written --name=value; what exedit.train is to get follows --" ;;
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
      *) fail "there is no flag --$flag_name; see --help. What exedit.train is to get follows --" ;;
    esac
    printf -v "${flag_name//-/_}" %s "$flag_value"
    shift
  done
}

# need NAMES: one line about the first of them that was not given.
need() {
  local flag_name
  for flag_name in "$@"; do
    [ -n "${!flag_name:-}" ] || fail "--${flag_name//_/-} is missing: see --help"
  done
}

# matches NAME PATTERN WORDS: one line where the flag's value is not of that kind.
matches() {
  [[ ${!1} =~ ^($2)$ ]] || fail "--${1//_/-} is '${!1}': it must be $3"
}

# The workdir as every machine sees it: a whole path, in the mounted bucket or on a shared disk.
check_workdir() {
  local remedy='of a folder that all machines see'
  [ -z "${1:-}" ] || remedy+="; with --bucket=NAME that is $1/..."
  case ${workdir:?} in
    gs://*/* | /*) ;;
    *://*) fail "--workdir is '$workdir': it must be gs://... or a folder, so give the whole path $remedy" ;;
    *) fail "--workdir is '$workdir': give the whole path $remedy" ;;
  esac
}

# A command as one line that a shell reads the same way.
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
