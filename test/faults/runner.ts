// Runs rows of the table, one after the other, each on a source that is as it should be. A row that goes wrong costs its lab,
// not the run.

import { setTimeout as delay } from 'node:timers/promises'
import { describeFailure } from '../../shared/failures.ts'
import type { CommandResult } from '../lab/enter.ts'
import { clone } from '../lab/world.ts'
import { harm, lookAtSource, unsettled } from './checks.ts'
import type { Cell, Chance, Happened, Scenario } from './scenario.ts'
import { World } from './world.ts'

const WITHIN_SECONDS = 90
const PATIENCE_MS = 240_000
/** A client may wait so long for the merge's outcome. */
const PULLER_MS = 200_000
/** So long `needs operator` must stand before it is believed: recovery may still find its way. */
const OPERATOR_SECONDS = 8
/** Of rows that change neither libvirt nor the guest, only every so manieth is followed by a pull. */
const PULL_EVERY = 4
/** Internal errors and wrong usage: no fault may look like these to who pulls. */
const NEVER_EXITS = [1, 2]

export class Runner implements AsyncDisposable {
  readonly #chance: Chance
  #world: Promise<World> | undefined
  #sincePull = 0

  constructor(chance: Chance) {
    this.#chance = chance
  }

  async run(scenario: Scenario): Promise<Cell> {
    const given = scenario.patience ?? PATIENCE_MS
    const over = new AbortController()
    const late = delay(given, undefined, { signal: over.signal }).then(
      () => failed(scenario, [`given up after ${given / 1000} s`]),
      () => failed(scenario, []),
    )
    const cell = await Promise.race([
      this.#attempt(scenario).catch((error: unknown) => failed(scenario, [explain(error)])),
      late,
    ])
    over.abort()
    if (cell.wrong.length > 0 || cell.operator) await this.#renew()
    return cell
  }

  async #attempt(scenario: Scenario): Promise<Cell> {
    if (scenario.alone) {
      const { note = '', wrong = [] } = await scenario.alone(this.#chance)
      return { ...failed(scenario, wrong), happened: note }
    }
    this.#world ??= World.start()
    const world = await this.#world
    await world.newCell()
    const happened = await scenario.run(world, this.#chance)
    const [state, result] = await Promise.all([
      settle(world, scenario, happened),
      happened.puller ? within(PULLER_MS, happened.puller.result) : undefined,
    ])
    const wrong = [...state.wrong, ...(happened.wrong ?? [])]
    if (happened.puller && !result) wrong.push('the puller did not end')
    if (result && !mayEndSo(happened, result.exitCode))
      wrong.push(`${happened.puller?.what ?? ''} exits ${result.exitCode}: ${result.stderr}`)
    if (state.operator && scenario.operator !== true)
      wrong.push(`left to an operator: ${state.reason ?? ''}`)
    const settled = state.wrong.length === 0 && !state.operator
    if (settled) await happened.afterwards?.()
    if (settled) wrong.push(...(await harm(world, scenario.leaves ?? 'running')))
    const due = ++this.#sincePull >= PULL_EVERY || scenario.pull === true
    if (settled && wrong.length === 0 && due) {
      this.#sincePull = 0
      wrong.push(...(await pullFaults(world)))
    }
    await world.tidy()
    return {
      scenario,
      wrong,
      operator: state.operator,
      happened: describe(happened, result, state),
      exit: result?.exitCode,
      said: result?.stderr.split('\n')[0] ?? '',
      seconds: happened.seconds ?? state.seconds,
      pulled: settled && due,
    }
  }

  async #renew(): Promise<void> {
    const world = this.#world
    this.#world = undefined
    // One that could not be started has left nothing.
    await (await world?.catch(() => undefined))?.[Symbol.asyncDispose]()
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.#renew()
  }
}

interface Settled {
  readonly wrong: readonly string[]
  readonly operator: boolean
  readonly reason?: string
  readonly seconds: number | undefined
}

/** Waits until the domain is on its bases, or is reported as needing an operator. */
async function settle(world: World, scenario: Scenario, happened: Happened): Promise<Settled> {
  const struck = world.struckAt
  if (struck === undefined)
    return { wrong: ['no fault struck'], operator: false, seconds: undefined }
  const limit = scenario.within ?? WITHIN_SECONDS
  let operatorSince: number | undefined
  for (;;) {
    const wrong = await unsettled(world, scenario.leaves ?? 'running').catch((error: unknown) => [
      explain(error),
    ])
    const seconds = (performance.now() - struck) / 1000
    if (wrong.length === 0) return { wrong, operator: false, seconds }
    const step = await lookAtSource(world).then(
      look => look.step,
      () => '',
    )
    operatorSince = step === 'needs operator' ? (operatorSince ?? seconds) : undefined
    const stands = operatorSince !== undefined && seconds - operatorSince > OPERATOR_SECONDS
    if (stands || (seconds > limit && happened.seconds === undefined)) {
      const reported = await operatorReport(world)
      if (reported.reason !== undefined)
        return { wrong: [], operator: true, reason: reported.reason, seconds: undefined }
      if (stands && reported.recovered) continue
      return {
        wrong: [`not on its bases after ${limit} s: ${wrong.join('; ')}`, reported.said],
        operator: false,
        seconds: undefined,
      }
    }
    await delay(100)
  }
}

interface OperatorReport {
  /** Set when status and recover both say that an operator is needed, with commands. */
  readonly reason?: string
  readonly recovered: boolean
  readonly said: string
}

async function operatorReport({ lab }: World): Promise<OperatorReport> {
  const options = { reject: false, timeout: 120_000 }
  const recover = await lab.source(['clone-server', 'recover', 'mydomain'], options)
  const status = await lab.source(['clone-server', 'status', '--json'], options)
  const said = `recover exits ${recover.exitCode}: ${recover.stderr} ${recover.stdout}; status: ${status.stdout}`
  const commands = /hint: +.*\b(virsh|clone-server|qemu-img|systemctl)\b/s.test(recover.stderr)
  const states = /"state": ?"needs operator"/.test(status.stdout)
  const reason = recover.stderr.split('\n')[0] ?? ''
  return recover.exitCode === 14 && commands && states
    ? { reason, recovered: false, said }
    : { recovered: recover.exitCode === 0, said }
}

async function pullFaults({ lab }: World): Promise<string[]> {
  const { exitCode, stderr } = await clone(lab, 'pull', 'mydomain')
  return exitCode === 0 ? [] : [`the next pull exits ${exitCode}: ${stderr}`]
}

function mayEndSo({ exits }: Happened, exit: number): boolean {
  return exits ? exits.includes(exit) : !NEVER_EXITS.includes(exit)
}

function describe(happened: Happened, result: CommandResult | undefined, state: Settled): string {
  const words: string[] = []
  if (happened.puller && result) words.push(`${happened.puller.what}: ${endOf(result)}`)
  if (happened.note !== undefined) words.push(happened.note)
  if (state.reason !== undefined) words.push(`needs operator: ${state.reason}`)
  return words.join('; ')
}

/** The code of its failure, as our programs print it. */
function endOf({ exitCode, stderr }: CommandResult): string {
  if (exitCode === 0) return 'succeeds'
  if (exitCode === 137) return 'killed'
  return /code: (\w+)/.exec(stderr)?.[1] ?? 'fails'
}

async function within<T>(ms: number, promise: Promise<T>): Promise<T | undefined> {
  const over = new AbortController()
  const late = delay(ms, undefined, { signal: over.signal }).catch(() => undefined)
  return Promise.race([promise, late]).finally(() => over.abort())
}

function failed(scenario: Scenario, wrong: readonly string[]): Cell {
  const nothing = { operator: false, exit: undefined, said: '', seconds: undefined, pulled: false }
  return { scenario, wrong, happened: '', ...nothing }
}

function explain(error: unknown): string {
  return describeFailure('lab', error).split('\n')[0] ?? ''
}
