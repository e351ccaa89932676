// The person who runs a command, as far as connecting may need one.

/** What that person allows, is told, and can be asked. */
export interface User {
  /** Whether a host key that nobody knows yet may be added to known_hosts. */
  readonly acceptsNewHostKeys: boolean
  /** Says something that must not go unnoticed. */
  tell(text: string): void
  /** Asks without echo. Absent where there is no terminal, as under cron. @throws the signal's reason */
  readonly ask?: ((question: string, signal: AbortSignal) => Promise<string>) | undefined
}

export const NO_USER: User = { acceptsNewHostKeys: false, tell: () => undefined }
