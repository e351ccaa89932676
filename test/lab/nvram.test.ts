// UEFI variables of a domain that is shut off: what its firmware would read at the next boot arrives byte for byte.

import t from 'tap'
import { writeInHost } from './identity.ts'
import { clone, IMAGES, SSH, startServe, startWorld } from './world.ts'

t.setTimeout(400_000)

const NVRAM = '/var/lib/libvirt/qemu/nvram/uefi_VARS.fd'
const CLONE = '/var/lib/nbd-clone/clones/uefi'
const FIRMWARE = '/usr/share/OVMF'

const UEFI = `<domain type='qemu'><name>uefi</name><memory unit='MiB'>128</memory>
<os><type arch='x86_64' machine='q35'>hvm</type>
<loader readonly='yes' type='pflash'>${FIRMWARE}/OVMF_CODE_4M.fd</loader>
<nvram template='${FIRMWARE}/OVMF_VARS_4M.fd'>${NVRAM}</nvram></os>
<features><acpi/></features>
<devices><disk type='file' device='disk'><driver name='qemu' type='raw'/><source file='${IMAGES}/uefi.raw'/>
<target dev='vda' bus='virtio'/></disk><memballoon model='none'/></devices></domain>
`
/** libvirt runs hooks only if they were there when it started. */
const INSTALL_HOOK = `clone-server config libvirt-hook | install -D -m 755 /dev/stdin /etc/libvirt/hooks/qemu.d/nbd-clone
pid=$(cat /run/libvirtd.pid); kill $pid; while kill -0 $pid 2>/dev/null; do sleep 0.1; done; exec libvirtd -d`

t.test('the UEFI variables of a domain that is shut off arrive byte for byte', async t => {
  const lab = await startWorld(
    'domains: { uefi: {} }\n',
    `sources: { alpha: { transport: ssh, host: source, ${SSH} } }\n` +
      'domains: { uefi: { source: alpha, rpo: 4h } }\n',
  )
  t.teardown(() => lab[Symbol.asyncDispose]())
  const source = async (script: string): Promise<string> =>
    (await lab.source(['sh', '-ec', script], { timeout: 60_000 })).stdout
  await source(INSTALL_HOOK)
  await source(`truncate -s 4M ${IMAGES}/uefi.raw`)
  await writeInHost('source', '/root/uefi.xml', UEFI)
  await source('until virsh -q define /root/uefi.xml; do sleep 0.2; done')
  // libvirt makes the variables at the first start; then something is in them that no template has.
  await source('virsh -q start uefi; sleep 1; virsh -q destroy uefi')
  await source(
    `head -c 64 /dev/urandom | dd of=${NVRAM} bs=1 seek=300000 conv=notrunc status=none; sync`,
  )
  const serve = await startServe(lab)

  const ran = await clone(lab, 'pull', 'uefi')
  t.equal(ran.exitCode, 0, ran.stderr)
  const [there] = (await source(`sha256sum ${NVRAM}`)).split(' ')
  const sum = await lab.standby(['sha256sum', `${CLONE}/current/nvram.fd`])
  t.equal(sum.stdout.split(' ')[0], there)
  const size = await lab.standby(['stat', '-c', '%s', `${CLONE}/current/nvram.fd`])
  t.ok(Number(size.stdout) > 500_000, 'a whole flash of variables')
  t.match(await lab.readFile('standby', `${CLONE}/current/domain.xml`), NVRAM)
  t.match(await lab.readFile('standby', `${CLONE}/current/generation.json`), '"nvram": "nvram.fd"')
  await serve.stop()
})
