// One thing at a time per domain.

export type Exclusive = <T>(task: () => Promise<T>) => Promise<T>

/** A queue: each task starts when the one before has ended, well or badly. */
export function createQueue(): Exclusive {
  let tail: Promise<unknown> = Promise.resolve()
  return task => {
    const result = tail.then(task)
    tail = result.catch(() => undefined)
    return result
  }
}
