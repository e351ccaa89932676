// A run of the table as people read it: a line per cell, a count, and the page in docs/.

import { execa } from 'execa'
import type { Cell } from './scenario.ts'

function verdict({ wrong, operator }: Cell): string {
  if (wrong.length > 0) return 'BAD'
  return operator ? 'operator' : 'ok'
}

export function line(cell: Cell): string {
  const { scenario, happened, exit, said, seconds, pulled, wrong } = cell
  const words = [
    verdict(cell).padEnd(8),
    scenario.name.padEnd(31),
    `exit ${exit ?? '-'}`.padEnd(8),
    (seconds === undefined ? '-' : `${seconds.toFixed(1)} s`).padStart(7),
    pulled ? 'pull ok' : '       ',
    `${scenario.step}: ${scenario.fault} -> ${happened}`,
  ]
  const more = [said, ...wrong].filter(one => one !== '').map(one => `          ${one}`)
  return [words.join('  ').trimEnd(), ...more].join('\n')
}

export function summary(cells: readonly Cell[]): string {
  const failed = cells.filter(({ wrong }) => wrong.length > 0).length
  const operator = cells.filter(cell => verdict(cell) === 'operator').length
  const left = operator === 0 ? '' : ` (${operator} of them left to an operator, with commands)`
  return `${cells.length - failed} passed, ${failed} failed${left}`
}

const ABOUT = `What a source does when something is killed, cut or changed under a session, measured on a real guest under software
emulation. Made by \`npm run test:faults -- --save\`, or \`--table\` from the
outputs of several runs; no line of it is written by hand.

After every row it is checked that every record and mark that the guest had synced is in the base images, in order and of
one instant on both disks; that libvirt's live and inactive XML and QEMU's own graph show the bases and no overlay is left;
that the journal is closed, no process of ours is left but serve, and \`clone-server status\` says idle; that the guest is
thawed and goes on writing. Where the last column says yes, the next \`clone pull\` was run too and succeeded.

- **step**: the journal's word, and where virsh stood: before its call had reached libvirt, or after it was done.
- **exit**: of the client that was pulling, or of the command named; 137 is a client that was killed itself.
- **seconds**: from the fault until the domain was on its bases and the journal closed. Recovery looks every 5 seconds, and less often after failures.
- A killed serve is started again after half a second, as systemd would; a killed libvirtd too.`

/** The page for docs/. @param facts what the run was made with, one line each */
export function page(cells: readonly Cell[], facts: readonly string[]): string {
  const rows = cells.map(({ scenario, happened, exit, seconds, pulled, wrong }) => {
    const what = wrong.length > 0 ? `**BAD**: ${wrong.join('; ')}` : happened
    return [
      scenario.step,
      scenario.fault,
      lasting(what).replaceAll('|', '\\|').replaceAll('\n', ' '),
      exit === undefined ? '-' : String(exit),
      seconds === undefined ? '-' : seconds.toFixed(1),
      pulled ? 'yes' : '',
      `\`${scenario.name}\``,
    ]
  })
  const head = ['step', 'fault', 'what happens', 'exit', 'seconds', 'next pull', 'row']
  const table = [head, head.map(() => '---'), ...rows].map(cellsOf => `| ${cellsOf.join(' | ')} |`)
  const made = facts.map(fact => `- ${fact}`)
  return ['# Faults', '', ABOUT, '', ...made, `- ${summary(cells)}`, '', ...table, ''].join('\n')
}

/** Without what differs from run to run: recovery points and process ids. */
function lasting(text: string): string {
  return text.replaceAll(/\b\d{8}T\d{6}Z-[0-9a-f]{4}\b/g, 'POINT').replaceAll(/\bpid \d+/g, 'pid N')
}

const PROGRAMS: readonly (readonly string[])[] = [
  ['libvirtd', '--version'],
  ['qemu-system-x86_64', '--version'],
  ['nbd-server', '-V'],
  ['node', '--version'],
]

/** Date and versions. */
export async function factsOf(): Promise<string[]> {
  const programs = PROGRAMS.map(async ([file = '', ...args]) => {
    const { all } = await execa(file, args, { all: true, reject: false, stdin: 'ignore' })
    return `${file} ${/\d+(\.\d+)+/.exec(all)?.[0] ?? 'of an unknown version'}`
  })
  return [`${new Date().toISOString().slice(0, 10)}, ${(await Promise.all(programs)).join(', ')}`]
}
