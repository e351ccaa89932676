// Undoes registered beside their does: run last first, on every way out.

/**
 * A stack of undo steps for `await using`. Every step runs even when an earlier one throws; the first error is
 * thrown once all have run.
 */
export class Cleanup implements AsyncDisposable {
  #steps: (() => unknown)[] = []

  /** Registers a step; the returned function forgets it again (the thing was handed on). */
  defer(step: () => unknown): () => void {
    this.#steps.push(step)
    return () => {
      this.#steps = this.#steps.filter(other => other !== step)
    }
  }

  async [Symbol.asyncDispose](): Promise<void> {
    const errors: unknown[] = []
    for (let step = this.#steps.pop(); step; step = this.#steps.pop()) {
      try {
        await step()
      } catch (error) {
        errors.push(error)
      }
    }
    if (errors.length > 0) throw errors[0]
  }
}
