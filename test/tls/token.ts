// The token under which standby1 may connect to each domain of a test's source; it is the fake source's, too.

export const TOKEN = 'a'.repeat(32)
