// One limit per client, whatever number of streams it has.

import { createRate, type Rate } from '../../shared/rate.ts'

export interface Bandwidth {
  /** Sets the limit of a client, also for those of its streams that wait already. @param limit bytes a second, or none */
  set(client: string, limit: number | undefined): void
  /** Resolves when so many bytes more may go to the client. @throws the signal's reason */
  take(client: string, bytes: number, signal: AbortSignal): Promise<void>
}

export function createBandwidth(): Bandwidth {
  const clients = new Map<string, { limit: number | undefined; rate: Rate }>()
  function of(client: string): { limit: number | undefined; rate: Rate } {
    const known = clients.get(client)
    if (known) return known
    const made = { limit: undefined, rate: createRate(() => clients.get(client)?.limit) }
    clients.set(client, made)
    return made
  }
  return {
    set(client, limit) {
      of(client).limit = limit
    },
    take: (client, bytes, signal) => of(client).rate.take(bytes, signal),
  }
}
