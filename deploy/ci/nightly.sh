#!/usr/bin/env bash
# One nightly re-evaluation: runs a pipeline, compares it with a kept baseline, leaves a report. CI systems only call this
# (github.yml, gitlab.yml), so that it can be tried anywhere:
#
#   RALLREC_BASELINE=baseline.parquet deploy/ci/nightly.sh pipeline.yaml gate.yaml report/
#
# Ends as `rallrec compare` does: 0 no regression, 1 regression, 2 invalid, 3 infrastructure, 4 too few samples to tell. A run
# that did not end well is no regression: what rallrec ends with then is passed on, a failed stage (1) as 3.
# Without a baseline the run becomes it, and 0 says only that. A baseline that exists is never replaced: a new one is kept
# by whoever has looked at the change, with `rallrec compare RUN --save FILE`.
set -uo pipefail

pipeline=${1:?usage: nightly.sh PIPELINE GATE FOLDER}
gate=${2:?usage: nightly.sh PIPELINE GATE FOLDER}
folder=${3:?usage: nightly.sh PIPELINE GATE FOLDER}
baseline=${RALLREC_BASELINE:-baseline.parquet}
rallrec=${RALLREC:-rallrec}

mkdir -p "$folder" || exit 3
"$rallrec" run "$pipeline"
code=$?
if [ "$code" != 0 ]; then
  echo "nightly.sh: the run ended with $code; nothing was compared" >&2
  [ "$code" = 1 ] && exit 3
  exit "$code"
fi
"$rallrec" report last > "$folder/metrics.md"
# In this run's own summary, where the CI system has one.
summary=${GITHUB_STEP_SUMMARY:-/dev/null}

if [ ! -e "$baseline" ]; then
  "$rallrec" compare last --save "$baseline" || exit
  echo "nightly.sh: there was no baseline; this run is it now: $baseline"
  cat "$folder/metrics.md" >> "$summary"
  exit 0
fi
"$rallrec" compare last --baseline "$baseline" --gate "$gate" --format md --junit "$folder/junit.xml" > "$folder/compare.md"
code=$?
cat "$folder/compare.md"
cat "$folder/compare.md" "$folder/metrics.md" >> "$summary"
exit "$code"
