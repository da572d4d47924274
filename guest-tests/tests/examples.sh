# Every example is read without complaint, and `-n` makes no domain of it.
. /lab/tests/lib.sh
for file in /lab/examples/*; do
    xlr create -n "$file" >out 2>err || { cat err; fail "$file: status $?"; }
    grep -v '^Parsing config' err && fail "$file: a complaint"
done
xlr list >listed 2>/dev/null
[ "$(wc -l <listed)" -le 2 ] || fail "a dry run made a domain"
