# First file: begin and end of each module of L1. Second: a trace of kvm_exit. Prints the vCPUs that do nothing but nested faults there.
NR == FNR { begin[NR] = $1; end[NR] = $2; next }
{
    vcpu = reason = rip = ""
    for (i = 1; i < NF; i++) {
        if ($i == "vcpu") vcpu = $(i + 1)
        if ($i == "reason") reason = $(i + 1)
        if ($i == "rip") { rip = $(i + 1); break }
    }
    if (rip == "") next
    exits[vcpu]++
    if (reason != "npf" || length(rip) != 18) next
    # Addresses of 16 digits compare as strings.
    for (m in begin) if (rip "" >= begin[m] "" && rip "" < end[m] "") { faults[vcpu]++; at[vcpu] = rip; break }
}
END { for (v in faults) if (faults[v] == exits[v] && exits[v] >= 100) print "vCPU " v ": " exits[v] " exits in 50 ms, all npf in L1's modules, as at " at[v] }
