"""Link emulation: a relay process through which real TCP connections run, shaped like a slow, stalling or cut link."""
