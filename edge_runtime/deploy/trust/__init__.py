"""Why a device may run what it was sent: signed manifests, bounded parsing, trial runs, slots to fall back on."""
