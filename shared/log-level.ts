// The levels of --log-level, apart from the logger, so that a command line can be read without loading it.

export const LOG_LEVELS = ['silent', 'error', 'warn', 'info', 'debug', 'trace'] as const
export type LogLevel = (typeof LOG_LEVELS)[number]
