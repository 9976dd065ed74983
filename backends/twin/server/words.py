"""The words that the twin's answers are made of, commonest first."""

from __future__ import annotations

_COMMON = """
the of and to a in is that it for as with was on be at by this are from or have an they which one you were all
there would their we him been has when who will no more if out so up into than them can only other time new some
could these two may first then do any like my now over such our man me even most made after also did many off
before must well back through years where much your way down should because long each just state people those
too mr how little good world make very year still see work life being under never day same another know while
last might great old go come since against right came take used himself few house use during without again place
around however home small found thought went say part once general high upon school every number system power
energy engine batch token memory model answer question reason result value change order point group line side
water light night hand head face word line story country city street family friend mother father child woman
letter paper book page table chair door window room floor wall road river sea land tree field stone fire wind
rain snow summer winter morning evening week month hour minute second moment market price money cost trade
company office plan program project team member service local public social common human natural real simple
clear early late free full open short strong young large low near far left best better less least next whole
certain possible different important several second third half main final single double equal exact
read write speak talk tell ask call need want keep hold move turn start begin end stop wait run walk stand sit
fall rise grow build break bring buy sell send give get let put set show hear feel find lose win pay meet lead
follow learn teach study think believe remember understand explain describe compare measure count add join share
divide reach carry close cover cross draw drive enter finish fill help hope learn leave look love open pass play
produce provide pull push raise reduce remain report return save serve shift sign sound spend store support
surface schedule prefill decode cache queue stream request response server client network signal current voltage
watt joule meter clock cycle phase load limit range rate ratio scale score sample series shape size space speed
stage step structure subject table target task test text theory thing tool total track train type unit view
volume weight width about above across almost along already although always among away behind below beside
between beyond both either else enough ever except further here indeed inside instead later likely maybe
mostly neither none nothing often onto outside perhaps quite rather really seldom sometimes soon therefore
though thus together toward twice until usually whether within yet user
assistant system example because between question
"""
COMMON = tuple(dict.fromkeys(_COMMON.split()))

_ENDINGS = (
    "ing tion ed er ly ment ness able ation ions ers est ive ous al ic ity ful less ist ize ise ance ence ant ent ary"
    " ory ure age ate ish ism en ble str sch th ch sh ph qu wh ck ll ss tt ff ee oo ea ou ai ow ay ey oy un re in de"
    " dis pre pro con com ex sub inter over under 's"
)
ENDINGS = tuple(_ENDINGS.split())
"""Pieces of words."""

_ONSETS = (
    "b c d f g h j k l m n p r s t v w y z bl br ch cl cr dr fl fr gl gr kn pl pr qu sc sh sk sl sm sn sp st str sw"
    " th tr tw wh wr"
)
ONSETS = tuple(_ONSETS.split())
_VOWELS = "a e i o u ai ea ee oo ou"
VOWELS = tuple(_VOWELS.split())
_CODAS = "b c d f g k l m n p r s t v x y z ck ct ll ng nd nt rd rk rm rn rt sh ss st ch th mp ld"
CODAS = ("", *_CODAS.split())
"""An onset, a vowel and a coda make a syllable: how words outside COMMON are cut."""
