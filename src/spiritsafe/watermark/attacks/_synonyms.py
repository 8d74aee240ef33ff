"""A small table of English words that can stand in for each other, written for this project.

One group a line; a word may be in one group only. It knows a part of any text: the attack reports which.
"""

from __future__ import annotations

from functools import cache

__all__ = ["synonyms_of"]

_GROUPS = """
big large sizeable
small little tiny
bigger larger
smaller tinier
fast quick rapid speedy
faster quicker
quickly rapidly swiftly
slow sluggish
slowly gradually
important significant crucial key
importance significance
essential vital necessary
easy simple straightforward
easily readily
hard difficult tough
good fine decent
better superior
great excellent superb wonderful
bad poor awful
new novel fresh
old ancient aged
modern contemporary
happy glad joyful cheerful
sad unhappy sorrowful
beautiful lovely gorgeous
clever smart intelligent
strange odd peculiar
famous renowned celebrated
common widespread usual
rare uncommon infrequent
main primary principal
whole entire complete
different distinct dissimilar
similar alike comparable
same identical
various diverse assorted
many numerous countless
several multiple
enough sufficient
often frequently
usually typically normally generally
sometimes occasionally
always invariably
rarely seldom
also additionally
too overly
very extremely highly
really truly genuinely
almost nearly
about around roughly approximately
however nevertheless nonetheless
therefore thus hence consequently
because since
although though
while whereas
but yet
perhaps maybe possibly
probably likely
certainly definitely surely
especially particularly notably
mainly mostly largely chiefly
only merely solely
quite rather fairly
just simply
finally eventually ultimately
immediately instantly promptly
suddenly abruptly
together jointly
begin start commence
begins starts commences
began started commenced
beginning starting
end finish conclude
ends finishes concludes
ended finished concluded
make create produce
makes creates produces
made created produced
making creating producing
use employ utilise
uses employs utilises
used employed utilised
using employing utilising
get obtain acquire
gets obtains acquires
got obtained acquired
getting obtaining acquiring
give provide supply
gives provides supplies
gave provided supplied
giving providing supplying
show display demonstrate
shows displays demonstrates
showed displayed demonstrated
shown exhibited
showing displaying demonstrating
help assist aid
helps assists aids
helped assisted aided
helping assisting aiding
need require
needs requires
needed required
want desire wish
wants desires wishes
wanted desired wished
keep retain maintain
keeps retains maintains
kept retained maintained
keeping retaining maintaining
change alter modify
changes alters modifies
changed altered modified
changing altering modifying
improve enhance refine
improves enhances refines
improved enhanced refined
improving enhancing refining
increase raise boost
increases raises boosts
increased raised boosted
increasing raising boosting
reduce decrease lower
reduces decreases lowers
reduced decreased lowered
reducing decreasing lowering
grow expand
grows expands
grew expanded
growing expanding
allow permit enable
allows permits enables
allowed permitted enabled
allowing permitting enabling
stop halt cease
stops halts ceases
stopped halted ceased
say state remark
says states remarks
said stated remarked
tell inform
told informed
ask inquire
asked inquired
answer reply response
answers replies responses
explain clarify elucidate
explains clarifies elucidates
explained clarified elucidated
describe depict portray
describes depicts portrays
described depicted portrayed
think believe reckon
thinks believes reckons
thought believed reckoned
know understand comprehend
knows understands comprehends
knew understood comprehended
see observe notice
sees observes notices
saw observed noticed
find discover locate
finds discovers locates
found discovered located
look glance gaze
looked glanced gazed
choose select pick
chooses selects picks
chose selected picked
choosing selecting picking
try attempt
tries attempts
tried attempted
trying attempting
build construct assemble
builds constructs assembles
built constructed assembled
building constructing assembling
fix repair mend
fixes repairs mends
fixed repaired mended
contain hold
contains holds
contained held
include incorporate comprise
includes incorporates comprises
included incorporated comprised
including incorporating
become turn
becomes turns
became turned
remain stay
remains stays
remained stayed
happen occur
happens occurs
happened occurred
seem appear
seems appears
seemed appeared
live dwell reside
lives dwells resides
lived dwelt resided
buy purchase
bought purchased
sell vend
go proceed
goes proceeds
went proceeded
come arrive
comes arrives
came arrived
leave depart
leaves departs
left departed
walk stroll
walked strolled
run sprint
ran sprinted
eat consume
eats consumes
speak talk
speaks talks
spoke talked
ensure guarantee
ensures guarantees
ensured guaranteed
avoid evade
avoids evades
avoided evaded
protect safeguard shield
protects safeguards shields
protected safeguarded shielded
consider contemplate
considered contemplated
develop devise
developed devised
achieve accomplish attain
achieved accomplished attained
solve resolve
solved resolved
connect link join
connected linked joined
person individual human
people persons folks
man gentleman fellow
woman lady
child kid youngster
children kids youngsters
friend companion pal
friends companions pals
house home dwelling
houses homes dwellings
job occupation profession
jobs occupations professions
work labour
problem issue difficulty
problems issues difficulties
idea notion concept
ideas notions concepts
way manner method
ways manners methods
part portion piece
parts portions pieces
place location spot
places locations spots
area region zone
areas regions zones
country nation
countries nations
city town
cities towns
road street
story tale narrative
stories tales narratives
book volume
books volumes
example instance illustration
examples instances illustrations
reason cause motive
reasons causes motives
result outcome consequence
results outcomes consequences
effect impact influence
effects impacts influences
goal aim objective
goals aims objectives
task assignment duty
tasks assignments duties
advantage benefit
advantages benefits
chance opportunity
chances opportunities
choice option alternative
choices options alternatives
type kind sort
types kinds sorts
group set collection
groups sets collections
amount quantity
amounts quantities
number figure
numbers figures
error mistake fault
errors mistakes faults
danger peril hazard
dangers perils hazards
power strength force
powers strengths forces
knowledge understanding wisdom
skill ability talent
skills abilities talents
feeling emotion sentiment
feelings emotions sentiments
fear dread
love affection
trip journey voyage
trips journeys voyages
car automobile vehicle
cars automobiles vehicles
picture image
pictures images
world globe
earth planet
forest woods
sea ocean
stone rock
field meadow
night evening
day daytime
moment instant
everyone everybody
someone somebody
each every
over above
under beneath below
between among amid
near close
across throughout
through via
within inside
until till
before prior
after following
such these
if whether
"""


@cache
def _table() -> dict[str, tuple[str, ...]]:
    groups = [tuple(line.split()) for line in _GROUPS.split("\n") if line]
    table: dict[str, tuple[str, ...]] = {}
    for group in groups:
        for word in group:
            table.setdefault(word, tuple(other for other in group if other != word))
    return table


def synonyms_of(word: str) -> tuple[str, ...]:
    """Words that can stand for this one, lower case; empty if it is not in the table."""
    return _table().get(word.lower(), ())
