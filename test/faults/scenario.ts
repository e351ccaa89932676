// What a fault is to the runner: a row of the table. And what came of it: a cell.

import type { CommandResult } from '../lab/enter.ts'
import type { DomainState } from './checks.ts'
import type { World } from './world.ts'

export type Scenario = InLab | Alone

export interface InLab extends Row {
  run(world: World, chance: Chance): Promise<Happened>
  readonly alone?: never
}

/** What is broken is a store of its own: no lab, no session, and nobody to recover. */
export interface Alone extends Row {
  alone(chance: Chance): Promise<Happened>
  readonly run?: never
}

export interface Row {
  /** Unique, for --only; a group of rows has a common beginning. */
  readonly name: string
  /** Where the session was. */
  readonly step: string
  readonly fault: string
  /** Part of what `npm test` runs. */
  readonly sample?: boolean
  /** Seconds from the fault until the domain must be on its bases; 90 when left out: recovery tries less and less often. */
  readonly within?: number
  /** How the fault leaves the domain, and so recovery must too; running when left out. */
  readonly leaves?: DomainState
  /** Recovery may leave this one to an operator, if it says so with commands. Of all others it must not. */
  readonly operator?: boolean
  /** Whether the next pull is tried after this row in any case: it changes libvirt or the guest. */
  readonly pull?: boolean
  /** Milliseconds after which the row is given up; 4 minutes when left out. */
  readonly patience?: number
}

/** Random numbers that come again with the same seed: at least 0, less than 1. */
export type Dice = () => number

export interface Chance {
  readonly dice: Dice
  /** How often a row that repeats itself does so; undefined: as often as it thinks right. */
  readonly rounds: number | undefined
}

export interface Happened {
  /** The puller or the operator's command whose exit status the table shows. */
  readonly puller?: { readonly what: string; readonly result: Promise<CommandResult> }
  /** How it may end; any way but an internal error when left out. */
  readonly exits?: readonly number[]
  /** What the table says besides. */
  readonly note?: string
  /** Seconds until the domain was on its bases, when the row has measured them itself. */
  readonly seconds?: number
  /** What the row itself found wrong. */
  readonly wrong?: readonly string[]
  /** Done once the domain is on its bases: what an admin does then, or what makes the guest answer again. */
  readonly afterwards?: () => Promise<void>
}

export interface Cell {
  readonly scenario: Scenario
  /** What was wrong; a good cell has nothing. */
  readonly wrong: readonly string[]
  /** Recovery left it to an operator, and said so. */
  readonly operator: boolean
  readonly happened: string
  readonly exit: number | undefined
  /** Its sentence, when it failed. */
  readonly said: string
  /** From the fault until the domain was on its bases. */
  readonly seconds: number | undefined
  /** Whether the next pull was tried. */
  readonly pulled: boolean
}

/** Mulberry32. */
export function diceOf(seed: number): Dice {
  let state = seed >>> 0
  return () => {
    state = (state + 0x6d2b79f5) >>> 0
    let mixed = Math.imul(state ^ (state >>> 15), state | 1)
    mixed ^= mixed + Math.imul(mixed ^ (mixed >>> 7), mixed | 61)
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32
  }
}
