// The token under which standby1 may connect to each domain of a test's source.

export const TOKEN = '1'.repeat(32)
