// What serve and its hashing process say to each other, and the name by which the process is known.

/** Its command name, as the kernel and `ps` show it; at most 15 characters. */
export const HASHER = 'clone-digests'

/** Reads of a base under way, beside what is hashed: a medium that waits for us is slower than one processor hashes. */
export const READS = 6

/** Digests of `count` chunks, from `chunk` on, of a base of `size` bytes. */
export interface HashJob {
  readonly id: number
  readonly base: string
  readonly size: number
  readonly chunk: number
  readonly count: number
}

/** `forget`: nobody waits for that job any more. */
export type ToHasher =
  ({ readonly kind: 'hash' } & HashJob) | { readonly kind: 'forget'; readonly id: number }

export type FromHasher =
  | { readonly id: number; readonly chunk: number; readonly digest: string }
  | { readonly id: number; readonly error: string }
