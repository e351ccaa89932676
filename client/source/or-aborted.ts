// Waiting no longer than a signal allows.

/** What a promise gives, or the signal's reason when that fires first; no listener outlives it. */
export async function orAborted<T>(promise: Promise<T>, signal: AbortSignal): Promise<T> {
  promise.catch(() => undefined)
  signal.throwIfAborted()
  let stop = (): void => undefined
  const stopped = new Promise<void>(resolve => (stop = resolve))
  signal.addEventListener('abort', stop, { once: true })
  try {
    return await Promise.race([
      promise,
      stopped.then(() => {
        throw signal.reason
      }),
    ])
  } finally {
    signal.removeEventListener('abort', stop)
  }
}
