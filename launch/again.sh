# shellcheck shell=bash
# Sourced by the launchers: a training that fails is started again, and goes on where it stood.
#
#   again LIMIT COMMAND...
#
# Ends when the command does with 0 (done) or 2 (a mistake that no repetition mends), after LIMIT
# failures in a row, or when it is told to: SIGTERM and Ctrl-C are passed on, and the command is
# waited for. Status 75 is a training that was told to stop and has saved (--stopped_status=75):
# unless it came from here, it begins again at once. One that lasted ten minutes was no failure in
# a row. RESTART_PAUSE: seconds between a failure and the next start (10).

again() {
  local limit=$1 failures=0 status begin child='' stopped='' signalled=''
  shift
  trap 'stopped=1 signalled=1; [ -z "$child" ] || kill -TERM "$child" 2>/dev/null || :' TERM INT
  while :; do
    begin=$SECONDS
    "$@" &
    child=$!
    [ -z "$stopped" ] || kill -TERM "$child" 2>/dev/null || : # asked before it had a number
    while :; do
      signalled='' status=0
      wait "$child" || status=$?
      [ -n "$signalled" ] || break # else only the waiting ended, not the command
    done
    child=''
    if [ -n "$stopped" ] || [ "$status" = 0 ] || [ "$status" = 2 ]; then
      break
    fi
    [ "$status" = 75 ] && continue
    [ $((SECONDS - begin)) -lt 600 ] || failures=0
    failures=$((failures + 1))
    if [ "$failures" -gt "$limit" ]; then
      echo "error: given up after $failures failures in a row; the last status was $status" >&2
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
