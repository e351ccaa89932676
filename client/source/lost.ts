// Disks that the newest generation has and the next one will not have, so that none goes without a word.

/** A disk that the generation will not have. */
export interface Omitted {
  readonly target: string
  readonly reason: string
  /** The newest generation has it, and nobody excluded it in standby.yaml: somebody should know. */
  readonly lost?: true
}

/** A clone's newest generation, as far as it matters here. */
export interface Newest {
  readonly id: string
  readonly generation: { readonly disks: readonly { readonly target: string }[] }
}

/**
 * What will not be pulled, with what the newest generation misses.
 * @param wanted the disks that will be. @param omitted those that the source names and that will not be
 */
export function withLost(
  wanted: readonly { target: string }[],
  omitted: readonly Omitted[],
  excluded: ReadonlySet<string>,
  newest: Newest | undefined,
): Omitted[] {
  if (!newest) return [...omitted]
  const had = new Set(newest.generation.disks.map(({ target }) => target))
  const missed = (target: string, reason: string): Omitted => ({
    target,
    reason: `${reason}; generation ${newest.id} has it`,
    ...(!excluded.has(target) && { lost: true }),
  })
  const named = new Set([...wanted, ...omitted].map(({ target }) => target))
  return [
    ...omitted.map(one => (had.has(one.target) ? missed(one.target, one.reason) : one)),
    ...[...had]
      .filter(target => !named.has(target))
      .map(target => missed(target, `the domain has no disk ${target} any more`)),
  ]
}
