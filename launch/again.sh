# shellcheck shell=bash
# Sourced by the launchers: restarts a training that fails. The training continues from its last
# checkpoint.
#
#   again LIMIT COMMAND...
#
# It returns when the command ends with 0 (done) or 2 (a mistake that a restart cannot fix), after
# LIMIT failures in a row, or on SIGTERM or Ctrl-C. It passes these signals on as SIGTERM and waits
# for the command. Status 75 means that the training saved and stopped on request
# (--stopped_status=75). If the request did not come from here, it restarts at once. A run of ten
# minutes or more resets the count of failures. RESTART_PAUSE is the number of seconds between a
# failure and the next start (10).

again() {
  local limit=$1 failures=0 status begin child='' stopped='' signalled=''
  shift
  trap 'stopped=1 signalled=1; [ -z "$child" ] || kill -TERM "$child" 2>/dev/null || :' TERM INT
  while :; do
    begin=$SECONDS
    "$@" &
    child=$!
    [ -z "$stopped" ] || kill -TERM "$child" 2>/dev/null || : # the signal came before $! was set
    while :; do
      signalled='' status=0
      wait "$child" || status=$?
      [ -n "$signalled" ] || break # otherwise the signal ended `wait`, not the command
    done
    child=''
    if [ -n "$stopped" ] || [ "$status" = 0 ] || [ "$status" = 2 ]; then
      break
    fi
    [ "$status" = 75 ] && continue
    [ $((SECONDS - begin)) -lt 600 ] || failures=0
    failures=$((failures + 1))
    if [ "$failures" -gt "$limit" ]; then
      echo "error: gave up after $failures failures in a row; the last status was $status" >&2
      break
    fi
    echo "status $status: starting again ($failures of $limit)" >&2
    sleep "${RESTART_PAUSE:-10}" &
    wait $! || :
    [ -z "$stopped" ] || break
  done
  trap - TERM INT
  return "$status"
}
